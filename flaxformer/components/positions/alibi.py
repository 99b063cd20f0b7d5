"""Attention with linear biases: a score falls in proportion to the distance, at a speed of each head's own."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.components.attention.kernels.biases import AlibiBias, FunctionBias
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class Alibi(PositionScheme):
    """Adds `-slope * |key position - query position|` to the scores; nothing is learned.

    The bias is lazy: an attention function that takes lazy biases never builds the square. Positions count real tokens
    (see `Step`), so padding does not shift it.

    Attributes:
      num_heads: N, any number.

    >>> -Alibi(num_heads=4).bias(jnp.array([[2]]), jnp.arange(3)[None]).dense(1, 3)[0, :, 0]
    Array([[0.5       , 0.25      , 0.        ],
           [0.125     , 0.0625    , 0.        ],
           [0.03125   , 0.015625  , 0.        ],
           [0.0078125 , 0.00390625, 0.        ]], dtype=float32)

    Source: Press et al. 2022, "Train short, test long", https://arxiv.org/abs/2108.12409. There only keys before the
    query exist; keys after it are treated alike here. BLOOM adds `slope * key position`, which differs by a number per
    query and head, and so not at all after the softmax.
    """

    num_heads: int

    def bias(self, q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"]) -> AlibiBias:
        """The lazy bias at these positions."""
        return AlibiBias(jnp.asarray(alibi_slopes(self.num_heads)), q_positions, k_positions)


@dataclasses.dataclass(frozen=True)
class RoundedAlibi(PositionScheme):
    """Adds `slope * key position / √H` to the scores, with slope, position and product rounded to bfloat16.

    Falcon-RW's. Without rounding it would be `Alibi` divided by √H; with it, distances far into a text are coarse.

    Attributes:
      num_heads: N, any number.
      head_dim: H.

    >>> RoundedAlibi(num_heads=1, head_dim=4).bias(jnp.array([[300]]), jnp.array([[1, 299, 300]])).dense(1, 3)[0, 0]
    Array([[0.00195312, 0.5859375 , 0.5859375 ]], dtype=float32)

    Source: Penedo et al. 2023, https://arxiv.org/abs/2306.01116, which used ALiBi; the rounding and the division are
    those of the code that reads its weights.
    """

    num_heads: int
    head_dim: int

    def bias(self, q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"]) -> FunctionBias:
        """The lazy bias at these positions."""
        values = jnp.asarray(alibi_slopes(self.num_heads)), 1 / math.sqrt(self.head_dim)
        return FunctionBias(_rounded_alibi, values, self.num_heads, q_positions, k_positions)


def _rounded_alibi(
    values: tuple[Array, float], q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"]
) -> Float[Array, "#B N 1 S"]:
    slopes, scale = values
    products = _to_bfloat16(slopes)[:, None, None] * _to_bfloat16(k_positions)[:, None, None, :]
    return jnp.broadcast_to(
        _to_bfloat16(products) * scale, (*products.shape[:2], q_positions.shape[-1], products.shape[-1])
    )


def _to_bfloat16(x: Array) -> Array:
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)  # a cast could be elided


def alibi_slopes(num_heads: int) -> Float[np.ndarray, " N"]:
    """How fast the scores of each head fall: a geometric series from `2 ** (-8 / N)` down to `2 ** -8`.

    Where N is no power of two, the series for the next lower power comes first, and every second slope of the series
    for the next higher one follows.

    Raises:
      ValueError: for less than one head.

    >>> alibi_slopes(3).tolist()
    [0.0625, 0.00390625, 0.25]
    """
    if num_heads < 1:
        raise ValueError(f"ALiBi was asked for with {num_heads} heads; expected at least 1, the heads of the query.")
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4 * (2 * extra + 1) / power) for extra in range(num_heads - power)]
    return np.array(slopes, np.float32)
