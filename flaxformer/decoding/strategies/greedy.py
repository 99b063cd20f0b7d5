"""Greedy search: always the most probable next token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.logits import argmax, dead_end, log_normalizer, log_prob_of
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Request
from flaxformer.decoding.strategies.rows import RowState, RowStrategy
from flaxformer.types import Array, PRNGKey


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy(RowStrategy):
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

    def law(self, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
        return jnp.where(jnp.arange(logits.shape[-1]) == argmax(logits)[:, None], 0.0, -jnp.inf)

    def worth(
        self, logits: Float[Array, "R V"], law: Float[Array, "R V"], tokens: Int[Array, " R"]
    ) -> Float[Array, " R"]:
        return log_prob_of(logits, tokens)
