"""The cache of a sliding window: a ring of as many slots as the window is wide."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from flaxformer.components.attention.caches import store
from flaxformer.components.attention.caches.base import Cache
from flaxformer.components.attention.caches.place import Place, offsets
from flaxformer.components.attention.masks import Mask, Window
from flaxformer.step import Step
from flaxformer.types import Array, DType


@dataclasses.dataclass(frozen=True)
class RingCache(Cache):
    """Keeps the last `window` keys and values of every row, and lets every query see no more than these.

    The token at position p lies in slot p modulo `window`, whatever the padding of its row, so that memory and time per
    step do not grow with the text:

        window 4, positions 0 .. 5    slots  4 5 2 3

    A query sees itself and the `window - 1` tokens before it, also in training: the layer applies `reach`. Several
    tokens at once attend to the ring as it was and to one another, and enter it afterwards.

    Attributes:
      window: tokens that a query may see, itself included.
      dtype: what keys and values are kept in; None: as they come.

    Source: Beltagy et al. 2020, "Longformer", section 3.1; Jiang et al. 2023, "Mistral 7B", section 2.
    """

    window: int
    dtype: DType | None = None

    rewinds = False  # what left the window is gone

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window is {self.window}; expected at least 1, for every token sees itself.")

    @property
    def reach(self) -> Mask:
        return Window(left=self.window - 1, right=0)

    def append(self, owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
        slots = step.slots()
        store.check_writable(owner, self)
        length = key.shape[-3]
        positions, first, count = _real_tokens(step, length)
        # Which position each slot is to hold, and which of this call's tokens that is.
        last = positions + count - 1  # [#B 1]
        held = last - (last - offsets(self.window)) % self.window  # [#B W], below 0 where nothing is
        source = held - positions + first
        fresh = (held >= positions) & (held >= 0) & (count > 0)
        before = positions - 1 - (positions - 1 - offsets(self.window)) % self.window  # [#B W]

        names = ("cached_key", "cached_value")
        if step.fresh:
            for name, x in zip(names, (key, value), strict=True):
                x = store.to_cache(x if self.dtype is None else x.astype(self.dtype))
                owner.put_variable("cache", name, _take(x, source, fresh))
            return key, value, Place(slots.positions, slots.positions, step.valid)
        attended = []
        for name, x in zip(names, (key, value), strict=True):
            old, new = store.read(owner, name), store.to_cache(x)
            new = new.astype(old.dtype)
            renewed = jnp.where(_columns(fresh), _take(new, source, fresh), old)
            owner.put_variable("cache", name, renewed)
            seen = renewed if length == 1 else jnp.concatenate([old, new], axis=-1)
            attended.append(store.from_cache(seen).astype(x.dtype))
        if length == 1:
            return *attended, Place(slots.positions, held, held >= 0)
        valid = jnp.ones_like(slots.positions, bool) if step.valid is None else step.valid
        k_positions, k_valid = (_beside(*pair) for pair in ((before, slots.positions), (before >= 0, valid)))
        return *attended, Place(slots.positions, k_positions, k_valid)


def _real_tokens(step: Step, length: int) -> tuple[Int[Array, "#B 1"], Int[Array, "#B 1"], Int[Array, "#B 1"]]:
    """The position of each row's first real token, its column, and how many there are."""
    positions = step.slots().positions
    if step.valid is None:
        return positions[:, :1], jnp.zeros((1, 1), jnp.int32), jnp.full((1, 1), length, jnp.int32)
    first = jnp.argmax(step.valid, axis=-1, keepdims=True).astype(jnp.int32)
    count = jnp.sum(step.valid, axis=-1, keepdims=True, dtype=jnp.int32)
    start = jnp.take_along_axis(jnp.broadcast_to(positions, step.valid.shape), first, axis=-1)
    return start + (count == 0), first, count  # a row without tokens has read `start + 1` of them before


def _columns(x: Array) -> Array:
    return x[:, None, None]  # [#B 1 1 W]


def _take(x: Array, source: Int[Array, "#B W"], wanted: Array) -> Array:
    """The columns `source` of `x [R K H T]`, zeros where they are not wanted."""
    if x.shape[-1] == 1:
        return jnp.where(_columns(wanted), x, jnp.zeros((), x.dtype))
    found = jnp.take_along_axis(x, jnp.clip(_columns(source), 0, x.shape[-1] - 1), axis=-1)
    return jnp.where(_columns(wanted), found, jnp.zeros((), x.dtype))


def _beside(first: Array, second: Array) -> Array:
    rows = max(len(first), len(second))
    return jnp.concatenate([jnp.broadcast_to(x, (rows, x.shape[1])) for x in (first, second)], axis=1)
