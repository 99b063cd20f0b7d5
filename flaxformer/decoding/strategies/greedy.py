"""Greedy search: always the most probable next token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import argmax, dead_end, log_normalizer, log_prob_of
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Generated, Request, Strategy
from flaxformer.decoding.strategies.rows import RowState
from flaxformer.types import Array, PRNGKey


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy(Strategy):
    """The most probable token at every step, the lowest id among equals; scores are the model's log-probabilities."""

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> RowState:
        return RowState.start(request, request.batch, rng)

    def update(
        self, logits: Float[Array, "R V"], state: RowState, constrain: Constrain | None = None
    ) -> tuple[Int[Array, " R"], None, RowState]:
        logits = logits.astype(jnp.float32)
        if constrain is None:
            _, rest = log_normalizer(logits)
            tokens, state = state.write(argmax(logits), -rest)
        else:
            allowed = constrain(logits)
            chosen = argmax(allowed)
            tokens, state = state.write(chosen, log_prob_of(logits, chosen) + dead_end(allowed, chosen))
        return tokens, None, state

    def done(self, state: RowState) -> Bool[Array, ""]:
        return state.done()

    def finish(self, state: RowState) -> Generated:
        return state.finish()
