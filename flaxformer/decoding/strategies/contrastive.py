"""Contrastive search: probable tokens whose hidden state does not repeat what the row already holds."""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import argmax, dead_end, log_prob_of, top_k
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Generated, Request, Strategy
from flaxformer.decoding.strategies.rows import RowState
from flaxformer.types import Array, PRNGKey


class Candidates(flax.struct.PyTreeNode):
    """What the model has been given to read.

    Attributes:
      context: `[B L D]`, hidden states of length 1 of everything before.
      tokens: `[B K]`.
      probabilities: `[B K]`; -inf for those that only fill up.
      log_probs: `[B K]`, the model's own.
    """

    context: Float[Array, "B L D"]
    tokens: Int[Array, "B K"]
    probabilities: Float[Array, "B K"]
    log_probs: Float[Array, "B K"]


class ContrastiveState(flax.struct.PyTreeNode):
    """Where a contrastive search stands. L is the length of prompt and result together.

    Attributes:
      rows: what is written, one row per item.
      valid: `[B L]`, which places of the context hold a token.
      candidates: None before the first update.
    """

    rows: RowState
    valid: Bool[Array, "B L"]
    candidates: Candidates | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["penalty"], meta_fields=["top_k"])
@dataclasses.dataclass(frozen=True)
class Contrastive(Strategy):
    """Of the k most probable tokens, the best by `(1 - α) · probability - α · similarity`.

    The similarity of a candidate is the greatest cosine between its last hidden state and that of any token before it.
    The model therefore reads all k candidates of an item, as rows of their own, and the best of them goes on. Scores
    are the model's log-probabilities.

    Attributes:
      top_k: candidates per step, k. 1 is greedy search.
      penalty: α. 0 is greedy search; changing it compiles nothing new.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation" (2022), equation 5.
    """

    top_k: int = 4
    penalty: float = 0.6

    wants_hidden = True
    reads_last = True

    @property
    def width(self) -> int:
        return self.top_k

    def check(self, batch: int) -> None:
        del batch
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1. top_k=1 is greedy search.")
        if not 0 <= self.penalty <= 1:
            raise ValueError(f"penalty is {self.penalty}; expected a number from 0 to 1. penalty=0 is greedy search.")

    def check_vocabulary(self, vocabulary: int) -> None:
        if self.top_k > vocabulary:
            raise ValueError(f"top_k is {self.top_k}; expected between 1 and the vocabulary of {vocabulary} tokens.")

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> ContrastiveState:
        valid = jnp.broadcast_to(prompts.valid, (request.batch, prompts.valid.shape[1]))
        return ContrastiveState(
            rows=RowState.start(request, request.batch, rng),
            valid=jnp.pad(valid, ((0, 0), (0, request.max_new_tokens))),
        )

    def update(
        self,
        logits: Float[Array, "R V"],
        state: ContrastiveState,
        constrain: Constrain | None = None,
        hidden: Float[Array, "... T D"] | None = None,
    ) -> tuple[Int[Array, " R"], Int[Array, " R"] | None, ContrastiveState]:
        """Chooses among the candidates just read, then names the next ones.

        Args:
          logits: behind every candidate; the first time behind the prompt, alike in the rows of an item.
          state: from `init` or `update`.
          constrain: see `Strategy`.
          hidden: `[R 1 D]` of the candidates; the first time `[B P D]` of the prompts.
        """
        assert hidden is not None
        batch = len(state.valid)
        best, parents = jnp.zeros((batch,), jnp.int32), None
        directions = _directions(hidden)
        if state.candidates is None:
            room = state.valid.shape[1] - hidden.shape[1]
            context = jnp.pad(directions, ((0, 0), (0, room), (0, 0)))
        else:
            best, context, state = self._choose(directions.reshape(batch, self.top_k, -1), state, state.candidates)
            parents = jnp.repeat(jnp.arange(batch) * self.top_k + best, self.top_k)
        logits = logits.astype(jnp.float32)
        allowed = logits if constrain is None else constrain(logits)
        pick = lambda x: x.reshape(batch, self.top_k, -1)[jnp.arange(batch), best]  # noqa: E731
        candidates = self._propose(pick(logits), pick(allowed), context)
        return candidates.tokens.reshape(-1), parents, state.replace(candidates=candidates)

    def _choose(
        self, directions: Float[Array, "B K D"], state: ContrastiveState, candidates: Candidates
    ) -> tuple[Int[Array, " B"], Float[Array, "B L D"], ContrastiveState]:
        """The best candidate of every item, the context with it, and the state after writing it."""
        similar = jnp.einsum("bkd,bld->bkl", directions, candidates.context)
        similarity = jnp.max(jnp.where(state.valid[:, None], similar, -1.0), axis=-1)  # [B K]
        best = argmax((1 - self.penalty) * candidates.probabilities - self.penalty * similarity)
        pick = lambda x: x[jnp.arange(len(best)), best]  # noqa: E731
        place = state.valid.shape[1] - state.rows.request.max_new_tokens + state.rows.step
        context = candidates.context.at[:, place].set(pick(directions))
        _, rows = state.rows.write(pick(candidates.tokens), pick(candidates.log_probs))
        return best, context, state.replace(rows=rows, valid=state.valid.at[:, place].set(True))

    def _propose(
        self, logits: Float[Array, "B V"], allowed: Float[Array, "B V"], context: Float[Array, "B L D"]
    ) -> Candidates:
        values, tokens = top_k(allowed, self.top_k)
        shares = jnp.take_along_axis(jax.nn.softmax(allowed, axis=-1), tokens, axis=1)
        log_probs = [log_prob_of(logits, x) + dead_end(allowed, x) for x in tokens.T]
        return Candidates(
            context=context,
            tokens=tokens,
            probabilities=jnp.where(values > -jnp.inf, shares, -jnp.inf),
            log_probs=jnp.stack(log_probs, axis=1),
        )

    def done(self, state: ContrastiveState) -> Bool[Array, ""]:
        return state.rows.done()

    def finish(self, state: ContrastiveState) -> Generated:
        return state.rows.finish()

    def going(self, state: ContrastiveState) -> Bool[Array, " B"]:
        return state.rows.going()

    def so_far(self, state: ContrastiveState) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        return state.rows.so_far()


def _directions(hidden: Float[Array, "... D"]) -> Float[Array, "... D"]:
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-12)
