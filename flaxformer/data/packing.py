"""Packing: several short examples share one row, so that a batch carries hardly any padding.

Greedy first fit with a bounded number of open rows: an example goes into the oldest open row that has room on every
axis. When none has room and no more rows may be opened, the fullest open row is closed. Nothing is dropped: an example
that fits no empty row is refused.

    rows of 6:   [a a a b b .]   closed, when [c c c c] came and both open rows were too full
                 [d d d d e e]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int

Item = TypeVar("Item")


def pack(
    items: Iterable[Item],
    sizes: Callable[[Item], Sequence[int]],
    lengths: Sequence[int],
    open_rows: int = 64,
) -> Iterator[list[Item]]:
    """Groups `items` into rows whose sizes stay within `lengths` on every axis.

    >>> list(pack([3, 4, 2, 1], sizes=lambda n: (n,), lengths=(5,)))
    [[3, 2], [4, 1]]

    Args:
      items: what to pack, in order; may be endless.
      sizes: tokens that an item takes on each axis.
      lengths: length of a row on each axis.
      open_rows: rows kept open at a time. More pack tighter, and hold items back longer.

    Yields:
      Rows in the order in which they are closed; each item is in exactly one.

    Raises:
      ValueError: for an item longer than a row, and without any open row.
    """
    if open_rows < 1:
        raise ValueError(f"open_rows is {open_rows}; expected at least 1.")
    capacity = np.asarray(lengths, np.int64)
    rows: list[list[Item]] = []
    room = np.empty((0, capacity.size), np.int64)  # [open rows, axes], oldest first
    for item in items:
        size = np.asarray(sizes(item), np.int64)
        if size.shape != capacity.shape or (size > capacity).any():
            raise ValueError(
                f"an example takes {tuple(size.tolist())} tokens; expected at most {tuple(capacity.tolist())}. "
                "Use longer rows, or trim the examples first."
            )
        fits = (room >= size).all(axis=1)
        index = int(fits.argmax()) if fits.any() else len(rows)
        if index == len(rows):
            if len(rows) == open_rows:
                fullest = int((room / capacity).sum(axis=1).argmin())
                yield rows.pop(fullest)
                room, index = np.delete(room, fullest, axis=0), index - 1
            rows.append([])
            room = np.concatenate([room, capacity[None]])
        rows[index].append(item)
        room[index] -= size
        if (room[index] == 0).any():
            yield rows.pop(index)
            room = np.delete(room, index, axis=0)
    yield from rows


def fill_fraction(rows: Sequence[Sequence[int]], sizes: Int[np.ndarray, "N A"], lengths: Sequence[int]) -> float:
    """The share of a packing's token places that hold a token.

    Args:
      rows: indices into `sizes`, row by row.
      sizes: `[N A]`, tokens that each example takes on each axis.
      lengths: length of a row on each axis.
    """
    used = sum(int(sizes[index].sum()) for row in rows for index in row)
    return used / (len(rows) * sum(lengths))
