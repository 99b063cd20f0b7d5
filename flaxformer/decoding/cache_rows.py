"""Rows of a cache: most of its arrays have them in front, those of scanned layers behind the axis of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Int

from flaxformer.decoding.t5x_caches import cache_map, flat_batch_beam_expand, take_rows
from flaxformer.types import Array

Stacked = tuple[str, ...] | None
"""Where in a cache the layers are scanned: everything below this path has rows on axis 1. None: nowhere."""


def map_rows(fn: Callable[[Array, int], Any], cache: Any, stacked: Stacked) -> Any:
    """`fn(leaf, axis)` of every cache leaf that has rows, `axis` being that of its rows; others stay as they are."""
    if not stacked:
        return cache_map(lambda leaf: fn(leaf, 0 if stacked is None else 1), cache)
    first, rest = stacked[0], stacked[1:]
    others = {name: part for name, part in cache.items() if name != first}
    return map_rows(fn, others, None) | ({first: map_rows(fn, cache[first], rest)} if first in cache else {})


def repeat_rows(cache: Any, count: int, stacked: Stacked) -> Any:
    """Every row `count` times in a row."""
    return map_rows(lambda leaf, axis: flat_batch_beam_expand(leaf, count, axis), cache, stacked)


def pick_rows(cache: Any, rows: Int[Array, " R"], stacked: Stacked) -> Any:
    """The given rows."""
    return map_rows(lambda leaf, axis: take_rows(leaf, rows, axis), cache, stacked)


def count_rows(cache: Any, stacked: Stacked) -> int:
    """How many rows there are; 1 in a cache without arrays."""
    counts: list[int] = []
    map_rows(lambda leaf, axis: counts.append(leaf.shape[axis]), cache, stacked)
    return counts[0] if counts else 1


def check_rows(cache: Any, rows: int, stacked: Stacked) -> None:
    """Refuses a cache in which some array has no axis of that many rows where it belongs.

    Raises:
      ValueError: as said.
    """

    def check(leaf: Array, axis: int) -> None:
        if leaf.ndim <= axis or leaf.shape[axis] != rows:
            raise ValueError(
                f"the model made a cache array of shape {leaf.shape}; expected {rows} rows on axis {axis}, one per "
                "prompt. If its layers are scanned, give it a field scan_layers=True; arrays without rows have to be "
                "named cache_index, cached_bias or position_embedder_index."
            )

    map_rows(check, cache, stacked)
