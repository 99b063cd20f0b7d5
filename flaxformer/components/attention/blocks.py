"""Rectangles of the scores between T queries and S keys: how masks and biases are cut for a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from flaxformer.types import Array

Start: TypeAlias = int | Int[Array, ""]
Known: TypeAlias = np.ndarray | Array


class Grid(NamedTuple):
    """Blocks of equal size: block (i, j) has the queries from `i * query_size` and the keys from `j * key_size` on."""

    query_count: int
    query_size: int
    key_count: int
    key_size: int


class Place(NamedTuple):
    """A block of the scores `[B N T S]`; starts may be traced, sizes are static."""

    row: Start
    rows: int
    head: Start
    heads: int
    query: Start
    queries: int
    key: Start
    keys: int


def indices(*starts: Start) -> tuple[Int[Array, ""], ...]:
    """Starts as `jax.lax` wants them: all of one type, also where 64-bit numbers are enabled."""
    return tuple(jnp.asarray(start, jnp.int32) for start in starts)


def cut(array: Any, start: Start, size: int, axis: int = -1) -> Array:
    """`size` entries of an axis from `start` on; axes of size 1 stay."""
    array = jnp.asarray(array)
    if array.shape[axis] == 1 or (array.shape[axis] == size and isinstance(start, int)):
        return array
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def grow(array: Any, length: int, axis: int = -1) -> Any:
    """An axis made longer by repeating its last entry, so that the ranges of blocks stay as they are."""
    if array is None or array.shape[axis] == length:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return namespace(array).pad(array, widths, mode="edge")


def positions_of(positions: Array | None, start: Start, size: int) -> Int[Array, "#B size"]:
    """The positions of `size` tokens; without any, their offsets in the row."""
    if positions is None:
        return start + jnp.arange(size, dtype=jnp.int32)[None, :]
    return cut(positions, start, size)


def ranges_of(array: Known, size: int) -> tuple[Known, Known]:
    """The least and the greatest entry of every block of `size`, `[#B n]` each."""
    blocks = array.reshape(array.shape[0], -1, size)
    return blocks.min(-1), blocks.max(-1)


def position_ranges(positions: Known | None, count: int, size: int) -> tuple[Known, Known]:
    """`ranges_of` positions, or of offsets in the row without any."""
    if positions is not None:
        return ranges_of(positions, size)
    first = np.arange(count)[None, :] * size
    return first, first + size - 1


def namespace(*arrays: Known) -> Any:
    """`numpy` while everything is known, `jax.numpy` otherwise."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
