"""The cache that keeps everything."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from flaxformer.components.attention.caches import store
from flaxformer.components.attention.caches.base import Cache
from flaxformer.components.attention.caches.place import Place
from flaxformer.step import Step, write_columns
from flaxformer.types import Array, DType


@dataclasses.dataclass(frozen=True)
class FullCache(Cache):
    """Keeps every key and value, `[R K H S]`.

    What would lie past the end of the cache is dropped.

    Attributes:
      dtype: what they are kept in, for example 'bfloat16' under a model that computes in float32; None: as they come.
    """

    dtype: DType | None = None

    branches = True

    def append(self, owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
        slots = step.slots()
        store.check_writable(owner, self)
        place = Place(slots.positions, slots.key_positions, slots.key_valid, step.visible)
        if step.fresh:
            for name, x in (("cached_key", key), ("cached_value", value)):
                room = slots.cache_length - x.shape[-3]
                kept = store.to_cache(x if self.dtype is None else x.astype(self.dtype))
                owner.put_variable("cache", name, jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, room))))
            return key, value, place
        key, value = (
            self._extend(owner, name, x, slots.slot) for name, x in (("cached_key", key), ("cached_value", value))
        )
        return key, value, place

    def _extend(self, owner: nn.Module, name: str, x: Array, slot: Array) -> Array:
        cached = write_columns(store.read(owner, name), store.to_cache(x), slot)
        owner.put_variable("cache", name, cached)
        return store.from_cache(cached).astype(x.dtype)
