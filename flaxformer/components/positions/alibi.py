"""Attention with linear biases: a score falls in proportion to the distance, at a speed of each head's own."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.components.attention.kernels.biases import AlibiBias
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
