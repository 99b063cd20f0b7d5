"""Normalisation of the last axis: T5's, which only rescales, and the classical one, which also centres."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int, Shaped

from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.components.calling import call_part
from flaxformer.parameters import parameter
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer


class T5LayerNorm(nn.Module, ParameterRemappable):
    """Root-mean-square normalisation: `x / sqrt(mean(x²) + epsilon) · scale`, with no mean taken and no bias.

    The mean is taken in float32; the normalised value is cast to `dtype` before it is scaled.

    Attributes:
      epsilon: added inside the square root.
      dtype: of the output.
      scale_init: of the parameter `scale` `[D]`; without effect if `center_scale_at_zero`.
      use_scale: learns a scale per channel.
      conv: a module applied between normalisation and scaling, such as `Depthwise1dConv`.
      center_scale_at_zero: stores the scale minus one, starting from zeros, so that weight decay pulls it to one.
      scale_axis_name: logical name of the axis of `scale`.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    epsilon: float = 1e-6
    dtype: DType = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()
    use_scale: bool = True
    conv: nn.Module | None = None
    center_scale_at_zero: bool = False
    scale_axis_name: str = "embed"

    @nn.compact
    def __call__(
        self,
        x: Shaped[Array, "*batch D"],
        decode: bool = False,
        prefill: bool = False,
        prefill_lengths: Int[Array, " B"] | None = None,
        *,
        step: Step | None = None,
    ) -> Shaped[Array, "*batch D"]:
        """Normalises the last axis of `x`; the other arguments only reach `conv`, where `step` takes precedence."""
        x = jnp.asarray(x, jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        x = jnp.asarray(x, self.dtype)
        if self.conv is not None:
            x = call_part(self.conv, x, step=step or Step.from_keywords(decode, prefill, prefill_lengths))
        if not self.use_scale:
            return x
        init = nn.initializers.zeros_init() if self.center_scale_at_zero else self.scale_init
        scale = parameter(self, "scale", init, x.shape[-1:], axes=(self.scale_axis_name,))
        return x * jnp.asarray(scale + self.center_scale_at_zero, self.dtype)


class LayerNorm(nn.Module):
    """Classical layer normalisation: `(x - mean(x)) / sqrt(var(x) + epsilon) · scale + bias`, computed in float32.

    Attributes:
      epsilon: added inside the square root.
      dtype: of the output.
      scale_init: of the parameter `scale` `[D]`.
      bias_init: of the parameter `bias` `[D]`.
      use_scale: learns a scale per channel.
      use_bias: learns a bias per channel.
      scale_axis_name: logical name of the axis of both.

    Source: Ba et al. 2016, "Layer Normalization".
    """

    epsilon: float = 1e-6
    dtype: DType = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()
    use_scale: bool = True
    use_bias: bool = True
    scale_axis_name: str = "embed"

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch D"]) -> Shaped[Array, "*batch D"]:
        """Normalises the last axis of `x`."""
        x = jnp.asarray(x, jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        if self.use_scale:
            x = x * parameter(self, "scale", self.scale_init, x.shape[-1:], axes=(self.scale_axis_name,))
        if self.use_bias:
            x = x + parameter(self, "bias", self.bias_init, x.shape[-1:], axes=(self.scale_axis_name,))
        return jnp.asarray(x, self.dtype)
