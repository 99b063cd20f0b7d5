"""The encoder's keys and values: projected once per sequence, kept at the encoder's batch size, never reordered."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from flaxformer.components.attention.caches.store import from_cache, to_cache
from flaxformer.types import Array


def remember(owner: nn.Module, project: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
    """The encoder's keys and values: projected by the first call, read from `cross_cache` by all later ones."""
    if owner.has_variable("cross_cache", "key"):
        key, value = (from_cache(owner.get_variable("cross_cache", name)) for name in ("key", "value"))
        return key, value
    key, value = project()
    if owner.is_mutable_collection("cross_cache") and not owner.is_initializing():
        owner.put_variable("cross_cache", "key", to_cache(key))
        owner.put_variable("cross_cache", "value", to_cache(value))
    return key, value
