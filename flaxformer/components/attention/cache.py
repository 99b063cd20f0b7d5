"""The cache room: what attention remembers of earlier tokens.

Two ways in, one store. Keys and values lie heads first and length last, `[R, K, H, S]`, the layout in which a decode
step reads them in order.

* A `Step` with a slot (`flaxformer.decoding`): every row writes the same slots, positions and validity come with the
  step, and prefill, chunk and single step are the same call to `append`.
* The keywords `decode` and `prefill` (T5X's loop): the layer counts tokens itself in `cache_index`, one number for all
  rows or one per row. See `append_counted`.

The encoder's keys and values are another matter: `remember` projects them once per sequence into the collection
`cross_cache`, which keeps the encoder's batch size and is never reordered.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Bool, Int

from flaxformer.step import Step
from flaxformer.types import Array


@flax.struct.dataclass
class Place:
    """Where the queries and keys of one attention call stand.

    Attributes:
      q_positions: `[#B T]` int32.
      k_positions: `[#B S]` int32.
      k_valid: `[#B S]` bool, or None when every key is real.
      counted: the positions are plain row offsets, so that a mask may be drawn at trace time (static).
    """

    q_positions: Int[Array, "#B T"]
    k_positions: Int[Array, "#B S"]
    k_valid: Bool[Array, "#B S"] | None = None
    counted: bool = flax.struct.field(pytree_node=False, default=False)


def offsets(length: int) -> Int[Array, "1 L"]:
    """Positions 0 .. length-1 as one row."""
    return jnp.arange(length, dtype=jnp.int32)[None]


def to_cache(x: Array) -> Array:
    """`[... S K H]` -> `[... K H S]`."""
    return rearrange(x, "... s k h -> ... k h s")


def from_cache(x: Array) -> Array:
    """`[... K H S]` -> `[... S K H]`."""
    return rearrange(x, "... k h s -> ... s k h")


def append(owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
    """Writes this call's keys and values at `step.slot`; returns everything there is to attend to.

    What would lie past the end of the cache is dropped.

    Args:
      owner: the attention module that holds `cached_key` and `cached_value`.
      key: `[R T K H]`.
      value: `[R T K Hv]`.
      step: made by `Step.start` or `advance`.

    Returns:
      key and value `[R S K H]`, and their place. A fresh cache returns this call's own, S = T.
    """
    slots = step.slots()
    if not owner.is_mutable_collection("cache"):
        raise ValueError(
            f"{'/'.join(owner.path)} is to write its cache, but the collection 'cache' is not mutable; expected "
            "mutable=['cache', 'cross_cache'] with the first call of a batch and mutable=['cache'] with later ones."
        )
    place = Place(slots.positions, slots.key_positions, slots.key_valid)
    if step.fresh:
        for name, x in (("cached_key", key), ("cached_value", value)):
            room = slots.cache_length - x.shape[-3]
            owner.put_variable("cache", name, jnp.pad(to_cache(x), ((0, 0), (0, 0), (0, 0), (0, room))))
        return key, value, place
    stored = []
    for name, x in (("cached_key", key), ("cached_value", value)):
        if not owner.has_variable("cache", name):
            raise ValueError(
                f"{'/'.join(owner.path)} has no '{name}' in the collection 'cache'; expected the cache of an earlier "
                "call. Make the first call of a batch with Step.start and mutable=['cache', 'cross_cache']."
            )
        cached = _write(owner.get_variable("cache", name), to_cache(x), slots.slot)
        owner.put_variable("cache", name, cached)
        stored.append(from_cache(cached))
    return stored[0], stored[1], place


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


def _write(cached: Array, update: Array, slot: Array) -> Array:
    """`cached [R K H S]` with `update [R K H T]` at `slot`; columns past the end are dropped, not shifted back."""
    if update.shape[-1] > 1:
        columns = slot + jnp.arange(update.shape[-1], dtype=jnp.int32)
        return cached.at[..., columns].set(update, mode="drop", unique_indices=True, indices_are_sorted=True)
    kept = lax.dynamic_slice_in_dim(cached, slot, 1, axis=-1)
    update = jnp.where(slot < cached.shape[-1], update.astype(cached.dtype), kept)
    return lax.dynamic_update_slice_in_dim(cached, update, slot, axis=-1)
