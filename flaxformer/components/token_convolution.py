"""Convolution over tokens that mixes features: every token with its neighbours on both sides."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Float

from flaxformer.types import Array, DType, Initializer


class TokenConvolution(nn.Module):
    """`y_t = bias + Σ_o x_{t+o} · kernel_o`, for the `size` nearest offsets o; what lies outside counts as zero.

    Attributes:
      features: width of the result.
      size: offsets, odd.
      groups: how many parts of the features are kept apart.
      dtype: of the computation.
      kernel_init: of the kernel `[size, D / groups, features]`.

    Raises:
      ValueError: for an even size.
    """

    features: int
    size: int
    groups: int = 1
    dtype: DType = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T features"]:
        """Convolves `x`."""
        if self.size % 2 == 0:
            raise ValueError(f"TokenConvolution got size={self.size}; expected an odd number, as many on either side.")
        shape = (self.size, x.shape[-1] // self.groups, self.features)
        kernel = partitioning.param_with_axes(
            "kernel", self.kernel_init, shape, jnp.float32, axes=("unmodeled", "embed", "mlp")
        )
        bias = partitioning.param_with_axes(
            "bias", nn.initializers.zeros_init(), (self.features,), jnp.float32, axes=("mlp",)
        )
        y = jax.lax.conv_general_dilated(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            window_strides=(1,),
            padding=[(self.size // 2, self.size // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return y + jnp.asarray(bias, self.dtype)
