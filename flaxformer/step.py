"""Where the tokens of one call stand, and where the cache keeps them.

Glossary:

* *position*: how far a token is from the start of its own sequence. Padding has no meaningful position.
* *slot*: a place in the key/value cache. All rows of a batch write the same slots in one call, so that a write is one
  contiguous copy; rows of differing lengths differ in which slots are `valid` and in the positions those slots hold.

A driver (see `flaxformer.decoding`) makes the first `Step` of a batch with `Step.start`, which covers the prompt, and
every later one with `advance`. Modules read it; none of them counts tokens.

The keywords `decode`, `prefill` and `prefill_lengths` of google/flaxformer are kept at the public modules. They become
a `Step` without positions (`Step.from_keywords`): the attention layer then finds the position in its own
`cache_index`, as T5X's decoding loop expects.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Int

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
        """
        current = self.slots()
        ahead = jnp.ones((1, length), bool) if valid is None else jnp.asarray(valid, bool)
        counted = jnp.max(jnp.where(current.key_valid, current.key_positions, -1), axis=-1, keepdims=True)  # [#B 1]
        positions = jnp.maximum(counted + jnp.cumsum(ahead, axis=-1, dtype=jnp.int32), 0)
        slot = current.slot + current.positions.shape[-1]
        return dataclasses.replace(
            self,
            positions=positions,
            valid=valid,
            slot=slot,
            key_positions=_write(_pad(current.key_positions, current.cache_length), positions, slot),
            key_valid=_write(_pad(current.key_valid, current.cache_length), ahead, slot),
            fresh=False,
        )


def _pad(row: Array, length: int) -> Array:
    return jnp.pad(row, ((0, 0), (0, length - row.shape[-1])))


def _write(row: Array, update: Array, slot: Array) -> Array:
    """`row [#B S]` with `update [#B T]` at `slot`; what lies past the end is dropped."""
    batch = max(row.shape[0], update.shape[0])
    row = jnp.broadcast_to(row, (batch, row.shape[1]))
    columns = slot + jnp.arange(update.shape[-1], dtype=jnp.int32)
    return row.at[:, columns].set(update, mode="drop", unique_indices=True, indices_are_sorted=True)
