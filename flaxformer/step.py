"""Where the tokens of one call stand, and where the cache keeps them.

Glossary:

* *position*: how far a token is from the start of its own sequence. Padding has no meaningful position.
* *slot*: a place in the key/value cache. All rows of a batch write the same slots in one call, so that a write is one
  contiguous copy; rows of differing lengths differ in which slots are `valid` and in the positions those slots hold.
* *branch*: one of several continuations of a row that share its slots: beams, samples. The tokens of a call are then
  the branches, side by side at one position; each sees what is `visible` to it, the slots of its own ancestors.
  Choosing other parents moves that table and no keys.

A driver (see `flaxformer.decoding`) makes the first `Step` of a batch with `Step.start`, which covers the prompt, and
every later one with `advance`. Modules read it; none of them counts tokens.

The keywords `decode`, `prefill` and `prefill_lengths` of google/flaxformer are kept at the public modules. They become
a `Step` without positions (`Step.from_keywords`): the attention layer then finds the position in its own
`cache_index`, as T5X's decoding loop expects.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, cast

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int, Shaped

from flaxformer.squeezing import squeeze_leading
from flaxformer.types import Array


class Slots(NamedTuple):
    """The fields of a step that writes cache slots; see `Step`."""

    positions: Int[Array, "#B T"]
    slot: Int[Array, ""]
    key_positions: Int[Array, "#B S"]
    key_valid: Bool[Array, "#B S"]
    cache_length: int


@flax.struct.dataclass
class Step:
    """What one call needs to know about time: training, prefill, chunk and single step alike.

    Attributes:
      positions: `[#B T]` int32, positions of this call's tokens. None: consecutive, from 0 or from the cache's index.
      valid: `[#B T]` bool, False at padding. None: all tokens are real.
      slot: scalar int32, the first cache slot that this call writes. None: nothing is cached by slot.
      key_positions: `[#B S]` int32, the position held by each slot once this call's tokens are written.
      key_valid: `[#B S]` bool, which slots hold a real token once this call's tokens are written.
      visible: `[#B T S]` bool, which slots each branch may see, itself included. None: tokens follow one another and
        may see every valid slot.
      lengths: `[B]` int32, real tokens per row of a T5X-style prefill.
      cache_length: slots in the cache (static). None without one.
      fresh: the cache is empty before this call (static): attend among this call's tokens only, and write by padding.
      decode: T5X's one-token step, positions from `cache_index` (static).
      prefill: T5X's full-length prefill (static).
      memory: keys and values come from the encoder and are projected once per sequence (static).
    """

    positions: Int[Array, "#B T"] | None = None
    valid: Bool[Array, "#B T"] | None = None
    slot: Int[Array, ""] | None = None
    key_positions: Int[Array, "#B S"] | None = None
    key_valid: Bool[Array, "#B S"] | None = None
    visible: Bool[Array, "#B T S"] | None = None
    lengths: Int[Array, " B"] | None = None
    cache_length: int | None = flax.struct.field(pytree_node=False, default=None)
    fresh: bool = flax.struct.field(pytree_node=False, default=False)
    decode: bool = flax.struct.field(pytree_node=False, default=False)
    prefill: bool = flax.struct.field(pytree_node=False, default=False)
    memory: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def use_cache(self) -> bool:
        """Whether this call writes slots of a cache that a driver counts."""
        return self.slot is not None

    def slots(self) -> Slots:
        """The fields of a step that a driver made, all of them present.

        Raises:
          ValueError: for any other step.
        """
        fields = (self.positions, self.slot, self.key_positions, self.key_valid, self.cache_length)
        if any(field is None for field in fields):
            raise ValueError(
                "this step has no cache slots; expected one made by Step.start or advance, "
                "which say where tokens stand and where they are kept."
            )
        return Slots(*fields)  # pyright: ignore[reportArgumentType]  (none is None)

    @classmethod
    def from_keywords(
        cls, decode: bool = False, prefill: bool = False, prefill_lengths: Int[Array, " B"] | None = None
    ) -> Step:
        """The step that google/flaxformer's call keywords mean.

        Raises:
          ValueError: for `decode` and `prefill` together.
        """
        if decode and prefill:
            raise ValueError(
                "decode=True and prefill=True were given together; expected at most one. "
                "Prefill the prompt first, then decode one token per call."
            )
        return cls(decode=decode, prefill=prefill, lengths=prefill_lengths)

    def to_memory(self) -> Step:
        """This step as cross-attention sees it: the same queries, keys that a driven cache keeps for good."""
        return dataclasses.replace(self, memory=True) if self.use_cache else Step()

    @classmethod
    def start(cls, valid: Bool[Array, "#B P"], cache_length: int) -> Step:
        """The step that prefills an empty cache with a prompt, padded on either side.

        Args:
          valid: `[#B P]` bool, True at the prompt's real tokens, which must be contiguous in each row. A batch axis
            of size 1 stands for rows that are all alike, and keeps position biases at batch size 1.
          cache_length: slots to allocate for the prompt and everything generated after it.

        Raises:
          ValueError: when the prompt does not fit the cache.
        """
        length = valid.shape[-1]
        if length > cache_length:
            raise ValueError(
                f"the prompt has {length} tokens and the cache {cache_length} slots; expected a prompt that fits. "
                "Allocate a longer cache or shorten the prompt."
            )
        valid = jnp.asarray(valid, bool)
        positions = jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)
        return cls(
            positions=positions,
            valid=valid,
            slot=jnp.zeros((), jnp.int32),
            key_positions=positions,
            key_valid=valid,
            cache_length=cache_length,
            fresh=True,
        )

    def advance(self, length: int = 1, valid: Bool[Array, "#B T"] | None = None) -> Step:
        """The step for the next `length` tokens of every row, written behind this call's slots.

        Args:
          length: tokens per row of the next call.
          valid: `[#B length]` bool, which of them are real; all when None.

        Raises:
          ValueError: when branches are to take more than one token each.
        """
        current = self.slots()
        if self.visible is not None:
            return self._advance_branches(length, valid)
        positions = self._last_position() + 1
        slot = current.slot + current.positions.shape[-1]
        if valid is None:
            positions = positions + jnp.arange(length, dtype=jnp.int32)
            ahead = jnp.ones((1, length), bool)
        else:
            ahead = jnp.asarray(valid, bool)
            positions = jnp.maximum(positions - 1 + jnp.cumsum(ahead, axis=-1, dtype=jnp.int32), 0)
        return dataclasses.replace(
            self,
            positions=positions,
            valid=valid,
            slot=slot,
            key_positions=write_columns(_pad(current.key_positions, current.cache_length), positions, slot),
            key_valid=write_columns(_pad(current.key_valid, current.cache_length), ahead, slot),
            fresh=False,
        )

    def branch(self, rows: int, width: int, cache_length: int) -> Step:
        """This one-token step, taken by `width` branches of every row instead.

        Args:
          rows: of the batch, B.
          width: branches per row.
          cache_length: slots of the cache from now on; every step of the branches takes `width` of them.

        Raises:
          ValueError: for a step of more than one token, or of branches.
        """
        current = self.slots()
        if self.visible is not None or current.positions.shape[-1] != 1 or self.fresh:
            raise ValueError(
                f"a step of {current.positions.shape[-1]} tokens{' of branches' * (self.visible is not None)} was to "
                "branch; expected the one-token step that follows a prompt."
            )
        positions = jnp.repeat(current.positions, width, axis=-1)  # [#B T]
        earlier = _pad(current.key_valid, cache_length) & (jnp.arange(cache_length) < current.slot)  # [#B S]
        key_positions = write_columns(_pad(current.key_positions, cache_length), positions, current.slot)
        branched = dataclasses.replace(
            self, positions=positions, valid=None, key_positions=key_positions, cache_length=cache_length
        )
        return branched._see(jnp.broadcast_to(earlier[:, None], (rows, width, cache_length)))

    def follow(self, parents: Int[Array, "B T"]) -> Step:
        """This step of branches, where branch k continues what branch `parents[:, k]` was before it."""
        visible = cast(Array, self.visible)
        visible = jnp.broadcast_to(visible, (len(parents), *visible.shape[1:]))
        earlier = jnp.arange(visible.shape[-1]) < self.slots().slot
        return self._see(jnp.take_along_axis(visible, parents[..., None], axis=1, mode="clip") & earlier)

    def _advance_branches(self, length: int, valid: Array | None) -> Step:
        if length != 1 or valid is not None:
            raise ValueError(
                f"branches were to take {length} tokens each, valid={valid is not None}; expected one real token each."
            )
        current, visible = self.slots(), cast(Array, self.visible)
        positions = current.positions + 1
        slot = current.slot + positions.shape[-1]
        key_positions = write_columns(current.key_positions, positions, slot)
        return dataclasses.replace(self, positions=positions, slot=slot, key_positions=key_positions)._see(visible)

    def _see(self, earlier: Array) -> Step:
        """This step, in which every branch sees `earlier [#B T S]` and its own slot."""
        current = self.slots()
        columns = jnp.arange(earlier.shape[-1], dtype=jnp.int32)
        own = columns == current.slot + jnp.arange(earlier.shape[-2], dtype=jnp.int32)[:, None]  # [T S]
        valid = _pad(current.key_valid, earlier.shape[-1])
        written = (columns >= current.slot) & (columns < current.slot + earlier.shape[-2])
        return dataclasses.replace(self, visible=earlier | own, key_valid=valid | written)

    def _last_position(self) -> Int[Array, "#B 1"]:
        """The position of every row's last token, -1 where it has none."""
        if self.valid is None:  # the last of them is the furthest
            return cast(Array, self.positions)[:, -1:]
        current = self.slots()
        written = jnp.where(current.key_valid, current.key_positions, -1)
        return jnp.max(written, axis=-1, keepdims=True, initial=-1)


def write_columns(stored: Shaped[Array, "*#B S"], update: Shaped[Array, "*#B T"], slot: Int[Array, ""]) -> Array:
    """`stored` with `update` in the columns from `slot` on; what lies past the end is dropped.

    One contiguous copy per row, as XLA's scatter is not: where the update runs over the end, it is shifted within
    itself first.
    """
    length, size = stored.shape[-1], min(update.shape[-1], stored.shape[-1])
    batch = jnp.broadcast_shapes(stored.shape[:-1], update.shape[:-1])
    stored = jnp.broadcast_to(stored, (*batch, length))
    update = jnp.broadcast_to(update[..., :size], (*batch, size)).astype(stored.dtype)
    stored, update = squeeze_leading(stored), squeeze_leading(update)
    start = jnp.clip(slot, 0, length - size)
    late = slot - start  # columns that the write had to move back
    kept = lax.dynamic_slice_in_dim(stored, start, size, axis=-1)
    if size == 1:
        moved = update
    else:
        moved = jnp.take(update, jnp.arange(size) - late, axis=-1, mode="clip")
    update = jnp.where(jnp.arange(size) >= late, moved, kept)
    return lax.dynamic_update_slice_in_dim(stored, update, start, axis=-1).reshape(*batch, length)


def _pad(row: Array, length: int) -> Array:
    return jnp.pad(row, ((0, 0), (0, length - row.shape[-1])))
