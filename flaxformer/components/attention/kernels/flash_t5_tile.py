"""What the passes of the T5 flash kernel share: which tiles a program visits, and what is added to a tile of logits.

T5's bucket is a staircase in the distance. A tile computes it by comparing distances with the few distances at which a
step begins, so that it needs neither logarithms nor a table of distances, and rounds like nothing at all. Tiles whose
distances all lie beyond the last step share one bucket: they add one number.

    bucket(d) = sum over steps of rise * (d >= start)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Bool, Float, Int

from flaxformer.components.relative_position_biases import relative_position_bucket
from flaxformer.types import Array

LOWEST = float(np.finfo(np.float32).min)  # where a running maximum starts: finite, so that blind rows are no NaN


class Buckets(NamedTuple):
    """T5's rule, known while tracing.

    Attributes:
      count: buckets of the table.
      bidirectional: whether keys after the query have buckets of their own.
      max_distance: distances from here on share a bucket.
    """

    count: int
    bidirectional: bool
    max_distance: int

    def steps(self) -> tuple[tuple[int, int], ...]:
        """The distances at which a bucket begins on one side of the diagonal, and by how many numbers it is further."""
        distances = np.arange(self.max_distance + 1)
        numbers = relative_position_bucket(
            -distances, bidirectional=self.bidirectional, num_buckets=self.count, max_distance=self.max_distance
        )
        rises = np.diff(numbers)
        return tuple((int(start) + 1, int(rises[start])) for start in np.flatnonzero(rises))

    @property
    def far(self) -> int:
        """The distance from which on the bucket stays the same."""
        return max((start for start, _ in self.steps()), default=0)

    def of(self, relative: Int[Array, "*n"]) -> Int[Array, "*n"]:
        """The buckets of key position minus query position."""
        distance = jnp.abs(relative) if self.bidirectional else jnp.maximum(-relative, 0)
        bucket = jnp.zeros_like(distance)
        for start, rise in self.steps():
            bucket += (distance >= start).astype(jnp.int32) * rise  # Triton's lowering has no select between literals
        return bucket + (relative > 0).astype(jnp.int32) * (self.count // 2) if self.bidirectional else bucket


class Setting(NamedTuple):
    """What is known while tracing.

    Attributes:
      scale: of the products.
      left: keys before the query that it sees, None for all.
      right: keys after it, likewise.
      buckets: rule of the bias; None without one.
      groups: query heads per key head.
      block: rows of a tile, and its keys.
      interpret: run on any platform, slowly.
      precision: of the products.
    """

    scale: float
    left: int | None
    right: int | None
    buckets: Buckets | None
    groups: int
    block: int
    interpret: bool
    precision: Any


def key_tiles(setting: Setting, i: Array, length: Array) -> tuple[Array, Array]:
    """The tiles of keys, first and past the last, that the tile of queries i may see of `length` keys."""
    block = setting.block
    first, last = jnp.zeros_like(i), _tiles(length, block)
    if setting.right is not None:
        last = jnp.minimum(last, _tiles((i + 1) * block + setting.right, block))
    if setting.left is not None:
        first = lax.div(jnp.maximum(i * block - setting.left, 0), block)
    return first, last


def query_tiles(setting: Setting, j: Array, length: int) -> tuple[Array, Array]:
    """The tiles of queries, of `length` in all, that may see the tile of keys j."""
    block = setting.block
    first, last = jnp.zeros_like(j), jnp.full_like(j, -(-length // block))
    if setting.right is not None:
        first = lax.div(jnp.maximum(j * block - setting.right, 0), block)
    if setting.left is not None:
        last = jnp.minimum(last, _tiles((j + 1) * block + setting.left, block))
    return first, last


def _tiles(length: Array, block: int) -> Array:
    return lax.div(jnp.maximum(length, 0) + (block - 1), block)


def one_bucket(setting: Setting, i: Array, j: Array) -> Bool[Array, ""]:
    """Whether tile (i, j) has one bucket only."""
    buckets, block = setting.buckets, setting.block
    assert buckets is not None
    nearest_behind = i * block - (j * block + block - 1)  # the least distance to a key before the query
    far = nearest_behind >= buckets.far
    nearest_ahead = j * block - (i * block + block - 1)
    return far | (nearest_ahead >= (max(buckets.far, 1) if buckets.bidirectional else 0))


def relative(setting: Setting, i: Array, j: Array) -> Int[Array, "q k"]:
    """Key position minus query position throughout tile (i, j)."""
    span = jnp.arange(setting.block, dtype=jnp.int32)
    return (j * setting.block + span)[None, :] - (i * setting.block + span)[:, None]


def logits(setting: Setting, i: Array, j: Array, query: Array, key: Array, refs: Any) -> Float[Array, "q k"]:
    """Scaled products with bias, -inf where the mask hides.

    Args:
      setting: see there.
      i: tile of queries.
      j: tile of keys.
      query: `[q H]`.
      key: `[k H]`.
      refs: `Refs`.
    """
    scores = product(setting, query, key.T) * setting.scale
    distance = relative(setting, i, j)
    if setting.buckets is not None:
        scores += bias(setting, i, j, distance, refs.table)
    return jnp.where(seen(setting, i, j, distance, refs), scores, -jnp.inf)


def bias(setting: Setting, i: Array, j: Array, distance: Int[Array, "q k"], table: Any) -> Float[Array, "q k"]:
    """The bias of tile (i, j), one number where it has one bucket."""
    buckets = setting.buckets
    assert buckets is not None

    def alike() -> Array:
        return jnp.full(distance.shape, table[buckets.of((j - i) * setting.block)], jnp.float32)

    def each() -> Array:
        return triton.load(table.at[buckets.of(distance)]).astype(jnp.float32)

    return lax.cond(one_bucket(setting, i, j), alike, each)


def seen(setting: Setting, i: Array, j: Array, distance: Int[Array, "q k"], refs: Any) -> Bool[Array, "q k"]:
    """What the masks show of tile (i, j)."""
    keys = j * setting.block + jnp.arange(setting.block, dtype=jnp.int32)
    visible = jnp.broadcast_to((keys < refs.length[0])[None, :], distance.shape)
    if setting.right is not None:
        visible &= distance <= setting.right
    if setting.left is not None:
        visible &= distance >= -setting.left
    if refs.query_ids is not None:
        query_ids, key_ids = (tile(x, n, setting.block) for x, n in ((refs.query_ids, i), (refs.key_ids, j)))
        visible &= query_ids[:, None] == key_ids[None, :]
    return visible


class Refs(NamedTuple):
    """What a program reads besides queries, keys and values.

    Attributes:
      length: `[1]`, keys of this row.
      table: `[buckets]`, of this head.
      query_ids: `[T]`, segments.
      key_ids: `[S]`.
    """

    length: Any
    table: Any
    query_ids: Any
    key_ids: Any


def tile(ref: Any, n: Array, block: int) -> Array:
    """Tile n of a reference along its first axis."""
    return ref[pl.dslice(n * block, block)]


def product(setting: Setting, a: Array, b: Array) -> Array:
    """A matrix product, summed in float32."""
    exact = a.dtype == jnp.float32 and setting.precision is None
    return triton.dot(a, b, precision=lax.Precision.HIGHEST if exact else setting.precision)


def call(setting: Setting, kernel: Any, name: str, **options: Any) -> Any:
    """`pallas_call` through Triton."""
    return pl.pallas_call(
        functools.partial(kernel, setting),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=setting.interpret,
        name=name,
        **options,
    )


def like(x: Array, shape: tuple[int, ...] | None = None, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """What an output looks like."""
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, dtype or x.dtype)


def specs(refs: Refs, where: Any) -> Refs:
    """How a program cuts `Refs`; `where` maps its grid indices to row and head."""

    def spec(x: Any, shape: tuple[int | None, ...], axis: int) -> Any:
        if x is None:
            return None
        return pl.BlockSpec(shape, lambda *n: (where(*n)[axis],) + (0,) * (len(shape) - 1))

    return Refs(
        spec(refs.length, (1,), 0),
        spec(refs.table, (None, refs.table.shape[1]) if refs.table is not None else (), 1),
        spec(refs.query_ids, (None, refs.query_ids.shape[1]) if refs.query_ids is not None else (), 0),
        spec(refs.key_ids, (None, refs.key_ids.shape[1]) if refs.key_ids is not None else (), 0),
    )
