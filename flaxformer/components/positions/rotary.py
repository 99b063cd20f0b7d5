"""Rotary positions: queries and keys are turned by angles, so that their product depends on the distance only.

Each pair of features of a head is a point in a plane; pair `j` of a token at position `t` turns by `t * r_j`. Fast
pairs tell neighbours apart, slow ones tell far from near:

    r_j = 1 / (min_timescale * (max_timescale / min_timescale) ** (2j / R)),   j = 0 .. R/2 - 1

for `R` rotated features. Two layouts say which features make a pair: halves (`j` and `j + R/2`) or adjacent (`2j` and
`2j + 1`).

`rotate` computes the angles from positions, in float32, where they are used. The functions that read a table
(`generate_fixed_pos_embedding`, `apply_rotary_embedding`) are those of google/flaxformer.

Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2. Rotating only the
leading features follows GPT-J and GPT-NeoX.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.components.positions.rotary_scaling import RotaryScaling
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class Rotary(PositionScheme):
    """Rotates queries and keys by their positions.

    Attributes:
      max_timescale: the slowest pair turns about once in `2 * pi * max_timescale` tokens.
      min_timescale: the same for the fastest pair.
      fraction: share of the features of a head that rotate, the leading ones; the rest pass unchanged.
      interleaved: pairs are adjacent features instead of halves.
      scaling: how speeds change for contexts longer than those trained on, for example `Llama3Scaling(factor=8)`.

    >>> x = jnp.ones([1, 2, 1, 4])
    >>> y = Rotary().rotate(x, jnp.array([[0, 5]]))
    >>> bool((y[:, 0] == x[:, 0]).all()), bool((y[:, 1] == x[:, 1]).all())
    (True, False)
    """

    max_timescale: float = 10000.0
    min_timescale: float = 1.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: RotaryScaling | None = None

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*#B T"]) -> Float[Array, "*B T N H"]:
        """Turns `x` by `positions`; shape and type stay.

        Raises:
          ValueError: when the number of rotated features is odd or larger than a head.
        """
        return rotate(
            x,
            positions,
            rotated=int(x.shape[-1] * self.fraction),
            min_timescale=self.min_timescale,
            max_timescale=self.max_timescale,
            interleaved=self.interleaved,
            scaling=self.scaling,
        )


def rotary_frequencies(
    features: int,
    min_timescale: float = 1.0,
    max_timescale: float = 10000.0,
    scaling: RotaryScaling | None = None,
) -> np.ndarray:
    """How fast each pair of features turns: `[features/2]` float32, radians per position, after `scaling`.

    Raises:
      ValueError: when `features` is odd.

    >>> rotary_frequencies(4).tolist()
    [1.0, 0.009999999776482582]
    """
    if features % 2:
        raise ValueError(
            f"rotary positions turn pairs of features, and {features} is odd; expected an even number. "
            "Change head_dim, or the fraction of it that rotates."
        )
    exponents = np.arange(0, features, 2) / max(features, 1)
    frequencies = 1.0 / (min_timescale * (max_timescale / min_timescale) ** exponents)
    return (frequencies if scaling is None else scaling.scale(frequencies)).astype(np.float32)


def rotary_angles(
    positions: Int[Array, "*B T"],
    features: int,
    min_timescale: float = 1.0,
    max_timescale: float = 10000.0,
    scaling: RotaryScaling | None = None,
) -> Float[Array, "*B T half"]:
    """The angle of each pair at each position, float32."""
    frequencies = rotary_frequencies(features, min_timescale, max_timescale, scaling)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "*B T N H"],
    positions: Int[Array, "*#B T"],
    *,
    rotated: int | None = None,
    min_timescale: float = 1.0,
    max_timescale: float = 10000.0,
    interleaved: bool = False,
    scaling: RotaryScaling | None = None,
) -> Float[Array, "*B T N H"]:
    """Turns the leading `rotated` features of `x` by `positions`.

    Args:
      x: queries or keys.
      positions: one per token; a batch axis of size 1 stands for all rows.
      rotated: how many features of a head turn; all when None.
      min_timescale: of the fastest pair.
      max_timescale: of the slowest pair.
      interleaved: pairs are adjacent features instead of halves.
      scaling: of the speeds, and of the magnitude of what is turned.

    Returns:
      As `x` in shape and type. The arithmetic is done in float32.

    Raises:
      ValueError: when `rotated` is odd, or exceeds the features.
    """
    features = x.shape[-1]
    rotated = features if rotated is None else rotated
    if not 0 <= rotated <= features:
        raise ValueError(
            f"{rotated} features of a head are to rotate; expected between 0 and its size {features}. "
            "Choose a fraction between 0 and 1."
        )
    angles = rotary_angles(positions, rotated, min_timescale, max_timescale, scaling)[..., None, :]  # [#B T 1 R/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if scaling is not None and scaling.magnitude != 1:
        sin, cos = sin * scaling.magnitude, cos * scaling.magnitude
    turning, rest = x[..., :rotated].astype(jnp.float32), x[..., rotated:]
    first, second = _unpaired(turning, interleaved)
    turned = _paired(first * cos - second * sin, second * cos + first * sin, interleaved).astype(x.dtype)
    return turned if rotated == features else jnp.concatenate([turned, rest], axis=-1)


def _unpaired(x: Array, interleaved: bool) -> tuple[Array, Array]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    first, second = jnp.split(x, 2, axis=-1)
    return first, second


def _paired(first: Array, second: Array, interleaved: bool) -> Array:
    if interleaved:
        return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    return jnp.concatenate([first, second], axis=-1)


def rotate_half(x: Float[Array, "*shape H"]) -> Float[Array, "*shape H"]:
    """The halves `(a, b)` of the last axis as `(-b, a)`: every pair turned by a right angle.

    >>> rotate_half(jnp.array([1, 2, 3, 4])).tolist()
    [-3, -4, 1, 2]
    """
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def generate_fixed_pos_embedding(
    features: int, length: int, min_timescale: float = 1.0, max_timescale: float = 10000.0
) -> tuple[Float[Array, "L H"], Float[Array, "L H"]]:
    """The table `(sin, cos)` of positions `0 .. length - 1` in the layout of halves, float32.

    Raises:
      ValueError: when `features` is odd.
    """
    angles = rotary_angles(jnp.arange(length), features, min_timescale, max_timescale)
    angles = jnp.concatenate([angles, angles], axis=-1)  # [L H]
    return jnp.sin(angles), jnp.cos(angles)


@functools.partial(jax.jit, static_argnames=("decode",))
def apply_rotary_embedding(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"] | Float[Array, "B S H"],
    cos: Float[Array, "L H"],
    sin: Float[Array, "L H"],
    decode: bool = False,
    rotary_index: Int[Array, " B"] | None = None,
) -> tuple[Array, Array]:
    """Rotates queries and keys by their row offsets, with a table from `generate_fixed_pos_embedding`.

    `x * cos + rotate_half(x) * sin`, where token `t` of a sequence reads row `t` of the table.

    Args:
      q: queries.
      k: keys, with or without a head axis; the result keeps that.
      cos: table of cosines (before `sin`, though the table is made as `(sin, cos)`).
      sin: table of sines.
      decode: a single query per row is taken to stand at `rotary_index`.
      rotary_index: position of the query of each row.

    Raises:
      ValueError: when batch or features of `q` and `k` differ.
    """
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q has shape {q.shape} and k {k.shape}; expected the same batch (first axis) and head size (last axis)."
        )
    if decode and q.shape[1] == 1 and rotary_index is not None:
        q_cos, q_sin = cos[rotary_index, None, None, :], sin[rotary_index, None, None, :]  # [B 1 1 H]
    else:
        q_cos, q_sin = cos[: q.shape[1], None, :], sin[: q.shape[1], None, :]  # [T 1 H]
    k_cos, k_sin = cos[: k.shape[1]], sin[: k.shape[1]]  # [S H]
    if k.ndim == 4:
        k_cos, k_sin = k_cos[:, None, :], k_sin[:, None, :]  # [S 1 H]
    return q * q_cos + rotate_half(q) * q_sin, k * k_cos + rotate_half(k) * k_sin
