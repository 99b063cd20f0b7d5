"""How caches reach their variables, and what they tell the driver about themselves.

Keys and values lie heads first and slots last, `[R, K, H, S]`, the layout in which a decode step reads them in order:
on CPU, attending over `[R, S, K, H]` took four times as long.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
from einops import rearrange

from flaxformer.telling import told
from flaxformer.types import Array

BY_SLOT = ("cached_key", "cached_value", "key_scale", "value_scale")
"""Leaves whose last axis counts slots: they may be given more of them."""

_OBSERVED: contextvars.ContextVar[dict | None] = contextvars.ContextVar("observed", default=None)


def to_cache(x: Array) -> Array:
    """`[... S K H]` -> `[... K H S]`."""
    return rearrange(x, "... s k h -> ... k h s")


def from_cache(x: Array) -> Array:
    """`[... K H S]` -> `[... S K H]`."""
    return rearrange(x, "... k h s -> ... s k h")


@contextlib.contextmanager
def observed() -> Iterator[dict[tuple[str, ...], Any]]:
    """Collects, while a model is traced, which cache serves each attention module: path -> cache."""
    seen: dict[tuple[str, ...], Any] = {}
    with told(_OBSERVED, seen):
        yield seen


def check_writable(owner: nn.Module, cache: Any) -> None:
    """Refuses a call that may not write the cache; otherwise notes which cache it is.

    Raises:
      ValueError: when the collection is not mutable.
    """
    if not owner.is_mutable_collection("cache"):
        raise ValueError(
            f"{'/'.join(owner.path)} is to write its cache, but the collection 'cache' is not mutable; expected "
            "mutable=['cache', 'cross_cache'] with the first call of a batch and mutable=['cache'] with later ones."
        )
    seen = _OBSERVED.get()
    if seen is not None:
        seen[owner.path] = cache


def read(owner: nn.Module, name: str) -> Array:
    """A variable that an earlier call wrote.

    Raises:
      ValueError: when there was none.
    """
    if not owner.has_variable("cache", name):
        raise ValueError(
            f"{'/'.join(owner.path)} has no '{name}' in the collection 'cache'; expected the cache of an earlier "
            "call. Make the first call of a batch with Step.start and mutable=['cache', 'cross_cache']."
        )
    return owner.get_variable("cache", name)
