"""Convolutions along the length that mix channels, as in front ends for sound: `[B T C]` to `[B U D]`.

y_u = Σ_k kernel_k · x_{stride·u + k - before}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.errors import ShapeError
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer


class StridedConvolution(nn.Module):
    """A convolution along the length; what lies outside the sequence counts as zero.

    Attributes:
      features: width D of the output.
      kernel_size: how many inputs an output sees.
      stride: from one output to the next, in inputs.
      padding: zeros before and behind the sequence.
      groups: how many parts the channels fall into that do not mix.
      use_bias: adds a bias per channel.
      kernel_init: of the kernel `[kernel_size, C / groups, D]`.
      bias_init: of the bias.
      dtype: of the computation.

    >>> x = jnp.ones((2, 10, 4))
    >>> StridedConvolution(6, kernel_size=3, stride=2).init_with_output(jax.random.key(0), x)[0].shape
    (2, 4, 6)

    Source: LeCun et al. 1989, "Backpropagation Applied to Handwritten Zip Code Recognition".
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: Sequence[int] = (0, 0)
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B U D"]:
        """Convolves `x`.

        Raises:
          ShapeError: a `ValueError`, for a sequence shorter than the kernel, or channels that do not fall into groups.
        """
        length, channels = x.shape[1:]
        if length + sum(self.padding) < self.kernel_size or channels % self.groups or self.features % self.groups:
            raise ShapeError(
                f"x has shape {x.shape}; expected at least {self.kernel_size - sum(self.padding)} positions, and "
                f"{channels} and {self.features} channels to be multiples of {self.groups} groups. Pad the sequence, "
                "or choose other groups."
            )
        x = jax.lax.conv_general_dilated(
            jnp.asarray(x, self.dtype),
            jnp.asarray(self._kernel(channels // self.groups), self.dtype),
            window_strides=(self.stride,),
            padding=[(self.padding[0], self.padding[1])],
            dimension_numbers=("NTC", "TIO", "NTC"),
            feature_group_count=self.groups,
        )
        return x + self._parameter("bias", self.bias_init, self.features).astype(self.dtype) if self.use_bias else x

    @nn.nowrap
    def _kernel(self, channels: int) -> Float[Array, "width C D"]:
        return self._parameter("kernel", self.kernel_init, self.kernel_size, channels, self.features)

    @nn.nowrap
    def _parameter(self, name: str, init: Initializer, *shape: int) -> Any:
        axes = (*("unmodeled",) * (len(shape) - 1), "embed")
        return parameter(self, name, init, shape, axes=axes)


class WeightNormedConvolution(StridedConvolution):
    """A convolution whose kernel has a length and a direction for every offset: `scale_k · kernel_k / |kernel_k|`.

    The attributes are those of `StridedConvolution`; `scale` `[kernel_size]` starts from ones.

    Source: Salimans and Kingma 2016, "Weight Normalization", arXiv:1602.07868.
    """

    @nn.nowrap
    def _kernel(self, channels: int) -> Float[Array, "width C D"]:
        kernel = super()._kernel(channels)
        scale = parameter(self, "scale", nn.initializers.ones_init(), (self.kernel_size,), axes=("unmodeled",))
        norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(1, 2), keepdims=True))
        return kernel * (scale[:, None, None] / norm)
