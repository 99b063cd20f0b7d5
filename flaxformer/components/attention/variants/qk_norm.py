"""Queries and keys of unit length, so that logits are cosines.

Other norms of queries and keys need no part of their own: the layers' `q_norm` and `k_norm` take any module over the
last axis, such as `T5LayerNorm(scale_axis_name="kv")` (Qwen 3, Gemma 3) or `LayerNorm(scale_axis_name="kv")` (Dehghani
et al. 2023, "Scaling vision transformers to 22 billion parameters", https://arxiv.org/abs/2302.05442).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.parameters import parameter
from flaxformer.types import Array, DType


class UnitNorm(nn.Module):
    """`x / |x|`, times a learned number where one is asked for.

    Attributes:
      scale: initial value of the parameter `scale` `[]`; None for none. Logits are cosines times it; `cosine_scale`
        gives the paper's.
      epsilon: added to `|x|²`.
      dtype: of the output.

    Source: Henry et al. 2020, "Query-key normalization for transformers", https://arxiv.org/abs/2010.04245
    """

    scale: float | None = None
    epsilon: float = 1e-6
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """Normalises the last axis."""
        x = jnp.asarray(x, jnp.float32)
        x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        if self.scale is not None:
            init = nn.initializers.constant(self.scale)
            x = x * parameter(self, "scale", init, (), axes=())
        return jnp.asarray(x, self.dtype)


def cosine_scale(length: float) -> float:
    """`log2(L² - L)` for sequences of length L (the paper takes the 97.5th percentile of its training data).

    >>> cosine_scale(2)
    1.0
    """
    return math.log2(length * length - length)
