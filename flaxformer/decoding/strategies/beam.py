"""Beam search as a pure state machine; `beam_rules` says what a hypothesis is worth and when the search ends.

Glossary:

* *live*: a hypothesis still being written; K per item, worst first (ties are decided by that order, as in T5X).
* *finished*: one that ended with EOS; K slots per item, empty ones score `NEG_INF`.
* *candidate*: a live hypothesis with one more token; 2K per item, so that K remain even if K of them end (a further K
  for every further EOS). A beam of one has one candidate, which makes it greedy search.
* *trace*: per step, the token that each live hypothesis got and the slot it continued. Hypotheses are read off the
  traces at the end, so that a step moves a few numbers per beam and never whole sequences.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF, best_continuations
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Generated, Request, Strategy, write_at
from flaxformer.decoding.strategies.beam_rules import BeamRule, BrevityPenalty
from flaxformer.types import Array, PRNGKey


class BeamState(flax.struct.PyTreeNode):
    """Where a beam search stands. K hypotheses per item, worst first.

    Attributes:
      step: tokens written so far.
      live_scores: `[B K]` log-probabilities of the live hypotheses.
      tokens: `[T B K]`, the trace of tokens.
      parents: `[T B K]`, the trace of slots.
      scores: `[B K]` penalised scores of the finished hypotheses.
      filled: `[B K]`, whether the slot holds one.
      ended_at: `[B K]`, the step that wrote its last token.
      ended_with: `[B K]`, that token: EOS, unless the rule finishes hypotheses without.
      ended_from: `[B K]`, the live slot that this step continued.
      prompt_lengths: `[B]`, added to the length that the brevity penalty sees.
      longest: `[B]`, the length of the most favourable brevity penalty.
      closed: `[B]`, the items that are over by the rule.
      request: static.
    """

    step: Int[Array, ""]
    live_scores: Float[Array, "B K"]
    tokens: Int[Array, "T B K"]
    parents: Int[Array, "T B K"]
    scores: Float[Array, "B K"]
    filled: Bool[Array, "B K"]
    ended_at: Int[Array, "B K"]
    ended_with: Int[Array, "B K"]
    ended_from: Int[Array, "B K"]
    prompt_lengths: Int[Array, " B"]
    longest: Int[Array, " B"]
    closed: Bool[Array, " B"]
    request: Request = flax.struct.field(pytree_node=False)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["alpha", "min_log_prob", "rule"],
    meta_fields=["num_beams", "num_return"],
)
@dataclasses.dataclass(frozen=True)
class BeamSearch(Strategy):
    """Keeps the K most probable hypotheses and returns the best finished ones.

    What a hypothesis is worth and when the search ends is said by a rule: T5X's brevity penalty unless told otherwise,
    or Hugging Face's: `BeamSearch(4, rule=LengthPenalty(1.0, early_stopping=True))`. An item of which nothing has
    finished by then returns its live hypotheses with their plain log-probabilities; an empty slot is all padding with
    length 0 and scores about `NEG_INF`.

    Constraints work on log-probabilities, which are not normalised again: a score stays the model's log-probability
    of what it could choose, and a forced token costs nothing.

    Attributes:
      num_beams: K.
      alpha: exponent of T5X's brevity penalty, 0.6 if None. Changing it compiles nothing new.
      num_return: hypotheses to return, n; None returns K.
      min_log_prob: stop once the live hypotheses of every item are below this.
      rule: what replaces T5X's rule.
    """

    num_beams: int = 4
    alpha: float | None = None
    num_return: int | None = None
    min_log_prob: float = NEG_INF
    rule: BeamRule | None = None

    @property
    def width(self) -> int:
        return self.num_beams

    @property
    def rules(self) -> BeamRule:
        """The rule in force."""
        return self.rule or BrevityPenalty(0.6 if self.alpha is None else self.alpha)

    def check(self, batch: int) -> None:
        del batch
        if self.num_beams < 1:
            raise ValueError(f"num_beams is {self.num_beams}; expected at least 1. num_beams=1 is greedy search.")
        if self.num_return is not None and not 1 <= self.num_return <= self.num_beams:
            raise ValueError(
                f"num_return is {self.num_return}; expected between 1 and num_beams={self.num_beams}. "
                "Search with more beams to return more hypotheses."
            )
        if self.rule is not None and self.alpha is not None:
            raise ValueError(
                f"alpha is {self.alpha} and rule is {self.rule!r}; expected one of them, for alpha belongs to T5X's "
                "rule. Write rule=BrevityPenalty(alpha) or leave the rule out."
            )
        self.rules.check()

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> BeamState:
        del rng
        return self.start(request, prompts.lengths)

    def start(
        self, request: Request, prompt_lengths: Int[Array, " B"], longest: Int[Array, " B"] | None = None
    ) -> BeamState:
        """One live hypothesis per item; the others start so low that the first step fills them from it."""
        shape = (request.batch, self.num_beams)
        start = jnp.where(jnp.arange(self.num_beams) == 0, 0.0, NEG_INF)
        return BeamState(
            step=jnp.zeros((), jnp.int32),
            live_scores=jnp.broadcast_to(start, shape).astype(jnp.float32),
            tokens=jnp.zeros((request.max_new_tokens, *shape), jnp.int32),
            parents=jnp.zeros((request.max_new_tokens, *shape), jnp.int32),
            scores=jnp.full(shape, NEG_INF, jnp.float32),
            filled=jnp.zeros(shape, bool),
            ended_at=jnp.zeros(shape, jnp.int32),
            ended_with=jnp.zeros(shape, jnp.int32),
            ended_from=jnp.zeros(shape, jnp.int32),
            prompt_lengths=prompt_lengths,
            longest=prompt_lengths + request.max_new_tokens + 1 if longest is None else longest,
            closed=jnp.zeros((request.batch,), bool),
            request=request,
        )

    def update(
        self, logits: Float[Array, "R V"], state: BeamState, constrain: Constrain | None = None
    ) -> tuple[Int[Array, " R"], Int[Array, " R"], BeamState]:
        logits = logits.astype(jnp.float32)
        if constrain is not None:
            logits = constrain(jax.nn.log_softmax(logits))
        logits = logits.reshape(*state.live_scores.shape, -1)  # [B K V]
        count = self.candidates(state.request, logits.shape[-1])
        return self.extend(*best_continuations(logits, state.live_scores, count, constrain is not None), state)

    def candidates(self, request: Request, vocabulary: int) -> int:
        """C: so many that K remain if all others end, or all that there are, where every token ends a sequence.

        One beam follows its best continuation, as greedy search does.
        """
        return min(1 + len(request.eos_ids), vocabulary) * self.num_beams if self.num_beams > 1 else 1

    def extend(
        self,
        candidates: Float[Array, "B C"],
        beams: Int[Array, "B C"],
        tokens: Int[Array, "B C"],
        state: BeamState,
    ) -> tuple[Int[Array, " R"], Int[Array, " R"], BeamState]:
        """The state after choosing among candidates: their log-probabilities, live slots and new tokens."""
        ended = state.request.ends(tokens)  # [B C]
        live_scores, live = _ascending_top(candidates + NEG_INF * ended, self.num_beams)  # [B K] x 2
        parents, next_tokens = _pick(beams, live), _pick(tokens, live)
        finishing = self.rules.finishing(ended, state) & self.counts(candidates)
        state = self._collect(candidates, finishing, beams, tokens, state)
        state = state.replace(
            step=state.step + 1,
            live_scores=live_scores,
            tokens=write_at(state.tokens, next_tokens, state.step),
            parents=write_at(state.parents, parents, state.step),
        )
        state = state.replace(closed=self.rules.closed(state))
        first_row = jnp.arange(len(parents), dtype=jnp.int32)[:, None] * self.num_beams
        return next_tokens.reshape(-1), (parents + first_row).reshape(-1), state

    def counts(self, candidates: Float[Array, "B C"]) -> Bool[Array, "B C"]:
        """Which candidates descend from a hypothesis that really started, so that no duplicate is ever returned."""
        return candidates > NEG_INF / 2

    def _collect(
        self,
        candidates: Float[Array, "B C"],
        finishing: Bool[Array, "B C"],
        beams: Int[Array, "B C"],
        tokens: Int[Array, "B C"],
        state: BeamState,
    ) -> BeamState:
        """The finished slots after the candidates that finish compete with those of before."""
        penalised = self.rules.penalised(candidates, state) + NEG_INF * ~finishing
        scores, kept = _ascending_top(jnp.concatenate([state.scores, penalised], axis=1), self.num_beams)
        join = lambda old, new: _pick(jnp.concatenate([old, new], axis=1), kept)  # noqa: E731
        return state.replace(
            scores=scores,
            filled=join(state.filled, finishing),
            ended_at=join(state.ended_at, jnp.broadcast_to(state.step, beams.shape)),
            ended_with=join(state.ended_with, tokens),
            ended_from=join(state.ended_from, beams),
        )

    def done(self, state: BeamState) -> Bool[Array, ""]:
        hopeless = (state.step > 0) & jnp.all(state.live_scores[:, -1] < self.min_log_prob)
        return jnp.all(state.closed) | hopeless | (state.step >= state.request.max_new_tokens)

    def going(self, state: BeamState) -> Bool[Array, " B"]:
        return ~state.closed

    def finish(self, state: BeamState) -> Generated:
        any_filled = jnp.any(state.filled, axis=1, keepdims=True)  # [B 1]
        slots = jnp.broadcast_to(jnp.arange(self.num_beams), state.filled.shape)
        ends = jnp.where(any_filled, state.ended_at, state.step - 1)
        sources = jnp.where(any_filled, state.ended_from, jnp.take_along_axis(state.parents[state.step - 1], slots, 1))
        last = jnp.where(any_filled, state.ended_with, state.tokens[state.step - 1])
        tokens = _read_trace(state, ends, sources, last)  # [B K T]
        scores = jnp.where(any_filled, state.scores, state.live_scores)
        empty = (any_filled & ~state.filled) | (~any_filled & ~self.counts(state.live_scores))
        tokens = jnp.where(empty[..., None], state.request.pad_id, tokens)
        lengths = jnp.where(empty, 0, ends + 1)
        keep = slice(None, None if self.num_return is None else -self.num_return - 1, -1)
        return Generated(tokens[:, keep], scores[:, keep], lengths[:, keep])


def _pick(x: Array, index: Int[Array, "B K"]) -> Array:
    return jnp.take_along_axis(x, index, axis=1)


def _ascending_top(scores: Float[Array, "B C"], k: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """The k best, the best last; among equals the lower index counts as better."""
    best, index = jax.lax.top_k(scores, k)
    return best[:, ::-1], index[:, ::-1]


def _read_trace(
    state: BeamState, ends: Int[Array, "B K"], sources: Int[Array, "B K"], last: Int[Array, "B K"]
) -> Int[Array, "B K T"]:
    """The tokens of hypotheses whose `last` token was written at step `ends` behind the live slots `sources`."""

    def back(slots: Int[Array, "B K"], at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        step, tokens, parents = at
        inside = step < ends
        written = jnp.where(inside, _pick(tokens, slots), jnp.where(step == ends, last, state.request.pad_id))
        return jnp.where(inside, _pick(parents, slots), slots), written

    steps = jnp.arange(state.request.max_new_tokens)
    _, tokens = jax.lax.scan(back, sources, (steps, state.tokens, state.parents), reverse=True)
    return jnp.moveaxis(tokens, 0, -1)
