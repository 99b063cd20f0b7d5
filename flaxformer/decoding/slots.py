"""Reading several tokens at once, and taking some of them back: what that means for a `Step`.

A driver keeps the step of the next single token, `memory.step`. `widened` makes it cover several tokens; `rewound`
says what comes after some of these have been taken back, a different number in each row:

    slots       0 1 2 3 4 5 6 7
    row 0       x x x a b c           read a b c, kept 3
    row 1       x x x a - -           read a b c, kept 1: two slots of this row stay empty for good
    next                  n           slot 6, or the first that no row has kept
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Int

from flaxformer.step import Step
from flaxformer.types import Array


def widened(step: Step, length: int) -> Step:
    """The step for `length` tokens, from that for the first of them."""
    slots = step.slots()
    positions = slots.positions[:, :1] + jnp.arange(length, dtype=jnp.int32)
    columns = jnp.arange(slots.key_valid.shape[1]) - slots.slot  # counted from the first slot that is written
    written = (columns >= 0) & (columns < length)
    offsets = jnp.where(written, columns, 0)
    return dataclasses.replace(
        step,
        positions=positions,
        key_positions=jnp.where(written, positions[:, :1] + offsets, slots.key_positions),
        key_valid=jnp.where(written, True, slots.key_valid),
    )


def rewound(step: Step, counts: Int[Array, " R"]) -> Step:
    """The step for the one token behind the first `counts` of those read with `widened(step, ...)`."""
    slots = step.slots()
    first = slots.positions[:, :1]
    kept, most = counts[:, None], jnp.max(counts)
    columns = jnp.arange(slots.key_valid.shape[1]) - slots.slot
    inside = (columns >= 0) & (columns < kept)
    following = columns == most
    positions = jnp.where(following, first + kept, first + jnp.where(inside, columns, 0))
    return dataclasses.replace(
        step,
        positions=first + kept,
        slot=slots.slot + most,
        key_positions=jnp.where(inside | following, positions, slots.key_positions),
        key_valid=jnp.where(columns >= 0, inside | following, slots.key_valid),
    )
