"""Arrays that stay on disk until their numbers are asked for.

Trees of such arrays have names, shapes and dtypes at no cost, so that a checkpoint can be checked, renamed and laid out
anew before anything is read, and then read array by array onto the devices, each device its own part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Index = tuple[slice, ...]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray:
    """An array whose numbers are read on request.

    >>> array = StoredArray.of(np.arange(6.0).reshape(2, 3))
    >>> array.shape, array.read((slice(1, 2), slice(0, 2))).tolist()
    ((2, 3), [[3.0, 4.0]])

    Attributes:
      shape: of the whole array.
      dtype: of what is read.
      source: reads a part of it, given one slice with start and stop per axis.
      name: file and array, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: Callable[[Index], np.ndarray]
    name: str = ""

    @classmethod
    def of(cls, array: Any, name: str = "") -> StoredArray:
        """An array in memory in this form; a stored one as it is."""
        if isinstance(array, StoredArray):
            return array
        return cls(tuple(np.shape(array)), _dtype_of(array), lambda index: np.asarray(array)[index], name)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self, index: Sequence[slice] | None = None) -> np.ndarray:
        """The numbers, or those in `index` (one slice per axis, without steps)."""
        index = tuple(index or (slice(None),) * self.ndim)
        bounds = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        return np.asarray(self.source(bounds), self.dtype)

    def get(self) -> np.ndarray:
        """All numbers, as T5X's lazy arrays give them."""
        return self.read()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype)

    def astype(self, dtype: Any) -> StoredArray:
        """The same array, to be cast when it is read."""
        dtype = jnp.dtype(dtype)
        return dataclasses.replace(self, dtype=dtype, source=lambda index: self.read(index).astype(dtype))

    def on(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """The array on devices; of each device's part only that part is read, and equal parts once."""
        read = functools.cache(lambda bounds: self.read([slice(*bound) for bound in bounds]))

        def part(index: Any) -> np.ndarray:
            return read(tuple(piece.indices(size)[:2] for piece, size in zip(index, self.shape, strict=True)))

        return jax.make_array_from_callback(self.shape, sharding, part)


def _dtype_of(array: Any) -> np.dtype:
    return np.dtype(array.dtype) if hasattr(array, "dtype") else np.asarray(array).dtype


def stack(parts: Sequence[Any], axis: int) -> StoredArray:
    """Arrays of one shape as one array with a new axis, read from the parts it is asked for."""
    arrays = [StoredArray.of(part) for part in parts]
    first = arrays[0]

    def read(index: Index) -> np.ndarray:
        rest = index[:axis] + index[axis + 1 :]
        chosen = arrays[index[axis]]
        if not chosen:
            return np.zeros([part.stop - part.start for part in index], first.dtype)
        return np.stack([array.read(rest) for array in chosen], axis)

    return StoredArray((*first.shape[:axis], len(arrays), *first.shape[axis:]), first.dtype, read, first.name)


def take(array: Any, position: int, axis: int) -> StoredArray:
    """One slice of an array along `axis`, which goes."""
    array = StoredArray.of(array)

    def read(index: Index) -> np.ndarray:
        return array.read((*index[:axis], slice(position, position + 1), *index[axis:])).squeeze(axis)

    return StoredArray((*array.shape[:axis], *array.shape[axis + 1 :]), array.dtype, read, array.name)


def map_stored(function: Callable[[StoredArray], Any], tree: Any) -> Any:
    """`tree` (nested dicts) with `function` applied to its stored arrays."""
    if isinstance(tree, Mapping):
        return {key: map_stored(function, value) for key, value in tree.items()}
    return function(tree) if isinstance(tree, StoredArray) else tree


def read_all(tree: Any) -> Any:
    """`tree` with every stored array read into memory."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, StoredArray)]
    arrays = iter(in_threads(StoredArray.get, leaves))
    found = {id(leaf): array for leaf, array in zip(leaves, arrays, strict=True)}
    return map_stored(lambda leaf: found[id(leaf)], tree)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of every item; files and decompression do not hold Python's lock."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(function, items))
