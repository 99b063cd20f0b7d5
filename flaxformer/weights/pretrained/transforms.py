"""How one of their arrays becomes ours, and ours theirs. No number is computed, and nothing is read before it is used.

| transform     | theirs                    | ours                                       |
|---------------|---------------------------|--------------------------------------------|
| `Same()`      | `[...]`                   | `[...]`                                    |
| `Transposed()`| `[out in]`                | `[in out]`, also a table `[buckets heads]` |
| `Row()`       | `[1 n]`                   | `[n]`                                      |
| `Patches(..)` | `[out channels r c]`      | `[r·c·channels, out]`                      |
| `Joined()`    | `[in q+k+v]`              | `[in q] [in k] [in v]`                     |
| `Grouped(g)`  | `[g x (q k v) in]`        | `[in q] [in k] [in v]`                     |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from flaxformer.weights.arrays import Index, StoredArray
from flaxformer.weights.pretrained.files import FileArray

Shape = tuple[int, ...]


class Transform(Protocol):
    """One array of theirs and one or more of ours."""

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """The shape of theirs, for our shapes."""
        ...

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        """Ours, in the order of the rule, from theirs."""
        ...

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        """Theirs from ours."""
        ...


@dataclasses.dataclass(frozen=True)
class Same:
    """Nothing changes."""

    def shape(self, ours: Sequence[Shape]) -> Shape:
        return ours[0]

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        return [theirs]

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        return ours[0]


@dataclasses.dataclass(frozen=True)
class Transposed:
    """All axes in reverse order; torch's linear layers store `[out in]`."""

    def shape(self, ours: Sequence[Shape]) -> Shape:
        return ours[0][::-1]

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        return [transposed(theirs)]

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        return transposed(ours[0])


@dataclasses.dataclass(frozen=True)
class Rows:
    """An array that is stored with axes of size 1 in front.

    Attributes:
      count: how many.
    """

    count: int

    def shape(self, ours: Sequence[Shape]) -> Shape:
        return (*(1,) * self.count, *ours[0])

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        return [computed(ours[0], theirs, lambda array: array.reshape(ours[0]))]

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        shape = self.shape([ours[0].shape])
        return computed(shape, ours[0], lambda array: array.reshape(shape))


class Row(Rows):
    """A vector that is stored as a matrix of one row, or a table with a batch axis."""

    def __init__(self) -> None:
        super().__init__(1)


@dataclasses.dataclass(frozen=True)
class Patches:
    """A convolution over patches `[out channels rows columns]` as a kernel `[rows · columns · channels, out]`.

    Attributes:
      rows: of a patch.
      columns: of a patch.
    """

    rows: int
    columns: int

    def shape(self, ours: Sequence[Shape]) -> Shape:
        inputs, out = ours[0]
        return (out, inputs // (self.rows * self.columns), self.rows, self.columns)

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        return [computed(ours[0], theirs, lambda array: array.transpose(2, 3, 1, 0).reshape(ours[0]))]

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        out, channels, rows, columns = shape = self.shape([ours[0].shape])

        def split(array: np.ndarray) -> np.ndarray:
            return array.reshape(rows, columns, channels, out).transpose(3, 2, 0, 1)

        return computed(shape, ours[0], split)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several of ours side by side along one axis of theirs.

    Attributes:
      axis: of theirs, after the transposition.
      transpose: whether theirs is `[out in]`.
    """

    axis: int = -1
    transpose: bool = False

    def shape(self, ours: Sequence[Shape]) -> Shape:
        axis = self.axis % len(ours[0])
        joined = (*ours[0][:axis], sum(shape[axis] for shape in ours), *ours[0][axis + 1 :])
        return joined[::-1] if self.transpose else joined

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        theirs = transposed(theirs) if self.transpose else theirs
        axis, start, parts = self.axis % len(ours[0]), 0, []
        for shape in ours:
            parts.append(part(theirs, axis, start, shape[axis]))
            start += shape[axis]
        return parts

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        first, axis = ours[0], self.axis % ours[0].ndim
        shape = (*first.shape[:axis], sum(array.shape[axis] for array in ours), *first.shape[axis + 1 :])
        read = lambda index: np.concatenate([array.read() for array in ours], axis)[index]  # noqa: E731
        joined = StoredArray(shape, first.dtype, read, first.name)
        return transposed(joined) if self.transpose else joined


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Queries, keys and values together, group by group: kernels `[groups · (q + k + v), in]`, or their biases.

    Attributes:
      groups: G. With as many as query heads this is [head][q, k, v]; with one, all queries, then the key, the value.
    """

    groups: int

    def shape(self, ours: Sequence[Shape]) -> Shape:
        return (sum(shape[-1] for shape in ours), *ours[0][:-1])

    def load(self, theirs: StoredArray, ours: Sequence[Shape]) -> list[StoredArray]:
        widths = [shape[-1] // self.groups for shape in ours]
        starts = np.cumsum([0, *widths])

        def cut(start: int, width: int) -> Any:
            def take(array: np.ndarray) -> np.ndarray:
                rows = array.reshape(self.groups, starts[-1], *array.shape[1:])[:, start : start + width]
                return rows.reshape(-1, *array.shape[1:]).T

            return take

        return [computed(s, theirs, cut(b, w)) for s, b, w in zip(ours, starts, widths, strict=False)]

    def save(self, ours: Sequence[StoredArray]) -> StoredArray:
        shape = self.shape([array.shape for array in ours])

        def read(index: Index) -> np.ndarray:
            parts = [array.read().T for array in ours]
            parts = [rows.reshape(self.groups, -1, *rows.shape[1:]) for rows in parts]
            return np.concatenate(parts, axis=1).reshape(shape)[index]

        return StoredArray(shape, ours[0].dtype, read, ours[0].name)


def transposed(array: StoredArray) -> StoredArray:
    """`array` with its axes reversed."""
    axis = array.ndim - 1 - getattr(array, "block_axis", 0) if array.ndim else 0
    read = lambda index: array.read(index[::-1]).T  # noqa: E731
    return FileArray(array.shape[::-1], array.dtype, read, array.name, axis)


def part(array: StoredArray, axis: int, start: int, size: int) -> StoredArray:
    """`size` entries of `array` along `axis`, from `start`."""

    def read(index: Index) -> np.ndarray:
        inner = slice(index[axis].start + start, index[axis].stop + start)
        return array.read((*index[:axis], inner, *index[axis + 1 :]))

    shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
    return FileArray(shape, array.dtype, read, array.name, getattr(array, "block_axis", 0))


def entry(array: StoredArray, n: int) -> StoredArray:
    """Entry `n` of the first axis of `array`."""
    return StoredArray(array.shape[1:], array.dtype, lambda index: array.read((slice(n, n + 1), *index))[0], array.name)


def stacked(entries: Sequence[StoredArray]) -> StoredArray:
    """The arrays along a new first axis, each read when it is asked for."""
    first = entries[0]

    def read(index: Index) -> np.ndarray:
        return np.stack([each.read(index[1:]) for each in entries[index[0]]])

    return FileArray((len(entries), *first.shape), first.dtype, read, first.name, 0)


def computed(shape: Shape, array: StoredArray, function: Any) -> StoredArray:
    """`function` of the whole array, which gives `shape`."""
    return StoredArray(tuple(shape), array.dtype, lambda index: function(array.read())[index], array.name)
