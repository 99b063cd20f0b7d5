"""Greedy search: always the most probable next token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import argmax, log_normalizer
from flaxformer.decoding.strategies.base import Generated, Request
from flaxformer.decoding.strategies.rows import RowState
from flaxformer.types import Array, PRNGKey


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token at every step, the lowest id among equals; scores are summed log-probabilities."""

    @property
    def width(self) -> int:
        return 1

    def check(self, batch: int) -> None:
        del batch

    def check_vocabulary(self, vocabulary: int) -> None:
        del vocabulary

    def init(self, request: Request, prompt_lengths: Int[Array, " B"], rng: PRNGKey) -> RowState:
        return RowState.start(request, len(prompt_lengths), rng)

    def update(self, logits: Float[Array, "R V"], state: RowState) -> tuple[Int[Array, " R"], None, RowState]:
        logits = logits.astype(jnp.float32)
        _, rest = log_normalizer(logits)
        tokens, state = state.write(argmax(logits), -rest)
        return tokens, None, state

    def done(self, state: RowState) -> Bool[Array, ""]:
        return state.done()

    def finish(self, state: RowState) -> Generated:
        return state.finish()
