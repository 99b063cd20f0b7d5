"""Guessing ahead: what the next tokens may be, cheaply.

A draft proposes k tokens per row; `speculative` has the model read them all in one call and keeps what it would have
written itself. A good guess saves calls, a bad one costs only time.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.constraints.base import Constraint, advance_all, apply_all
from flaxformer.decoding.constraints.repetition import History
from flaxformer.decoding.logits import dead_end
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import ENCODER_TOKENS, Prompts
from flaxformer.decoding.strategies.base import Request
from flaxformer.decoding.strategies.rows import RowStrategy
from flaxformer.types import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class Rules:
    """By what tokens are drawn: a strategy's law, of what the constraints allow."""

    strategy: RowStrategy
    constraints: tuple[Constraint, ...]
    request: Request

    def law(self, logits: Float[Array, "R V"], states: Any) -> tuple[Float[Array, "R V"], Float[Array, "R V"]]:
        """Log-probabilities to draw from, and the logits that the constraints leave."""
        logits = logits.astype(jnp.float32)
        allowed = apply_all(self.constraints, logits, states, self.request) if self.constraints else logits
        return self.strategy.law(allowed), allowed

    def worth(self, logits: Array, allowed: Array, law: Array, tokens: Int[Array, " R"]) -> Float[Array, " R"]:
        """What tokens add to the scores of their rows."""
        worth = self.strategy.worth(logits, law, tokens)
        return worth + dead_end(allowed, tokens) if self.constraints else worth

    def advance(self, states: Any, tokens: Int[Array, " R"]) -> Any:
        return advance_all(self.constraints, states, tokens)


class Proposal(NamedTuple):
    """What a draft proposes: tokens `[R k]`, and the law `[R k V]` by which it drew them (None: it was certain)."""

    tokens: Int[Array, "R k"]
    law: Float[Array, "R k V"] | None


class Draft(abc.ABC):
    """Proposes `length` tokens per row. Implementations are frozen dataclasses, and pytrees."""

    length: int

    def check(self, has_encoder: bool) -> None:
        """Raises ValueError for settings that cannot work with such a model."""
        del has_encoder
        if self.length < 1:
            raise ValueError(f"the draft has length={self.length}; expected at least 1 token to be proposed at a time.")

    @abc.abstractmethod
    def begin(
        self, inputs: Mapping[str, Array], prompts: Prompts, request: Request, cache_length: int, width: int
    ) -> Any:
        """The state behind the prompts, of R = B * width rows; a prefix is part of the prompts here."""

    @abc.abstractmethod
    def propose(
        self, state: Any, last: Int[Array, " R"], rules: Rules, states: Any, key: PRNGKey
    ) -> tuple[Proposal, Any]:
        """Tokens to follow `last`, which was not read yet, and the state after reading all of them."""

    @abc.abstractmethod
    def keep(self, before: Any, after: Any, tokens: Int[Array, "R k1"], counts: Int[Array, " R"]) -> Any:
        """The state as if only the first `counts` of `tokens` had been read: `last` and what was proposed."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["model", "length"])
@dataclasses.dataclass(frozen=True)
class DraftModel(Draft):
    """A smaller model of the same vocabulary and kind, which reads the same inputs.

    Attributes:
      model: a Linen module that `generate` could drive; it has to be hashable.
      variables: its variables.
      length: tokens to propose at a time, k.

    Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023).
    """

    model: Any
    variables: Any
    length: int = 4

    @property
    def session(self) -> ModelSession:
        return ModelSession(self.model)

    def check(self, has_encoder: bool) -> None:
        super().check(has_encoder)
        if self.session.has_encoder != has_encoder:
            kinds = {True: "an encoder-decoder", False: "decoder-only"}
            raise ValueError(
                f"the draft model is {kinds[self.session.has_encoder]} and the model {kinds[has_encoder]}; expected "
                "two of a kind, for they read the same inputs."
            )
        self.session.vocabulary_sizes(self.variables)  # refuses variables without parameters

    def begin(
        self, inputs: Mapping[str, Array], prompts: Prompts, request: Request, cache_length: int, width: int
    ) -> Any:
        context = self.session.open(self.variables, inputs)
        _, context, memory = self.session.prefill(context, prompts, cache_length)
        memory = self.session.expand(memory, width)
        return context, self.session.keep(memory, memory, jnp.zeros((request.batch * width,), jnp.int32))

    def propose(
        self, state: Any, last: Int[Array, " R"], rules: Rules, states: Any, key: PRNGKey
    ) -> tuple[Proposal, Any]:
        """One step per token, and one more to read the last."""
        context, memory = state

        def step(carry: Any, key: PRNGKey) -> Any:
            memory, states, token = carry
            logits, memory = self.session.step(context, memory, token)
            law, _ = rules.law(logits, states)
            token = jax.random.categorical(key, law).astype(jnp.int32)
            return (memory, rules.advance(states, token), token), (token, law)

        keys = jax.random.split(key, self.length + 1)
        (memory, *_), (tokens, laws) = jax.lax.scan(step, (memory, states, last), keys)
        proposal = Proposal(tokens[:-1].T, jnp.moveaxis(laws[:-1], 0, 1))
        return proposal, (context, memory)

    def keep(self, before: Any, after: Any, tokens: Int[Array, "R k1"], counts: Int[Array, " R"]) -> Any:
        return after[0], self.session.keep(before[1], after[1], counts)


class _Text(NamedTuple):
    source: Int[Array, "R S"]
    history: History


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PromptLookup(Draft):
    """Proposes what followed the last few tokens when they occurred before, in the encoder's input or in the row.

    Pays where results copy from their inputs: summaries, corrections, code. Needs no model.

    Attributes:
      length: tokens to propose at a time, k.
      ngram: how many of the last tokens are looked for; where they never occurred, fewer of them.

    Source: Saxena, "Prompt Lookup Decoding" (2023); Yang et al., "Inference with Reference" (2023).
    """

    length: int = 4
    ngram: int = 2

    def check(self, has_encoder: bool) -> None:
        super().check(has_encoder)
        if self.ngram < 1:
            raise ValueError(f"ngram is {self.ngram}; expected at least 1 token to look for.")

    def begin(
        self, inputs: Mapping[str, Array], prompts: Prompts, request: Request, cache_length: int, width: int
    ) -> _Text:
        none = jnp.zeros((request.batch, 0), jnp.int32)
        source = inputs.get(ENCODER_TOKENS, none)
        source = jnp.asarray(source if jnp.ndim(source) == 2 else none, jnp.int32)[: request.batch]  # sound has no ids
        return _Text(jnp.repeat(jnp.where(source == 0, -1, source), width, axis=0), History.of(request, prompts, width))

    def propose(
        self, state: _Text, last: Int[Array, " R"], rules: Rules, states: Any, key: PRNGKey
    ) -> tuple[Proposal, _Text]:
        history = state.history.add(last)
        text = jnp.concatenate([state.source, history.known(-1)], axis=1)  # [R L]
        starts = jnp.arange(text.shape[1])
        following = jnp.full((len(last),), text.shape[1])  # nothing found: past the end
        for n in range(1, self.ngram + 1):
            tail = jnp.maximum(history.length[:, None] - n, 0) + jnp.arange(n)
            sought = jnp.take_along_axis(history.tokens, tail, axis=1)  # [R n]
            found = (history.length >= n)[:, None] & (_ahead(text, n) >= 0)
            for offset in range(n):
                found &= _ahead(text, offset) == sought[:, offset : offset + 1]
            place = jnp.max(jnp.where(found, starts + n, -1), axis=1)
            following = jnp.where(place >= 0, place, following)
        where = following[:, None] + jnp.arange(self.length)
        tokens = jnp.take_along_axis(text, where, axis=1, mode="fill", fill_value=0)
        return Proposal(jnp.maximum(tokens, 0), None), state

    def keep(self, before: _Text, after: _Text, tokens: Int[Array, "R k1"], counts: Int[Array, " R"]) -> _Text:
        del after
        return before._replace(history=before.history.extend(tokens, counts))


def _ahead(text: Int[Array, "R L"], offset: int) -> Int[Array, "R L"]:
    """`text` moved to the left, -1 behind its end."""
    return jnp.pad(text, ((0, 0), (0, offset)), constant_values=-1)[:, offset:]
