"""Constraints against repetition: they look at everything a row has read or written, its start token included."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.constraints.base import Constraint
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Request
from flaxformer.types import Array


class History(NamedTuple):
    """What every row has read and written: `tokens [R L]`, of which the first `length [R]` count."""

    tokens: Int[Array, "R L"]
    length: Int[Array, " R"]

    @classmethod
    def of(cls, request: Request, prompts: Prompts, width: int) -> History:
        """The prompts, moved to the left, with room for everything that may be written."""
        valid = jnp.broadcast_to(prompts.valid, prompts.tokens.shape)
        length = jnp.sum(valid, axis=1, dtype=jnp.int32)
        columns = jnp.arange(valid.shape[1]) - length[:, None]  # prompts end in the last column
        tokens = jnp.take_along_axis(prompts.tokens, columns % valid.shape[1], axis=1)
        tokens = jnp.pad(tokens, ((0, 0), (0, request.max_new_tokens + 1)))
        return cls(jnp.repeat(tokens, width, axis=0), jnp.repeat(length, width))

    def known(self, other: int) -> Int[Array, "R L"]:
        """The tokens that count; `other` elsewhere."""
        return jnp.where(jnp.arange(self.tokens.shape[1]) < self.length[:, None], self.tokens, other)

    def add(self, tokens: Int[Array, " R"]) -> History:
        """With one more token per row."""
        return self.extend(tokens[:, None], jnp.ones_like(self.length))

    def extend(self, tokens: Int[Array, "R T"], counts: Int[Array, " R"]) -> History:
        """With the first `counts` of `tokens`."""
        ahead = jnp.arange(tokens.shape[1])
        columns = jnp.where(ahead < counts[:, None], self.length[:, None] + ahead, self.tokens.shape[1])
        rows = jnp.arange(len(tokens))[:, None]
        return History(self.tokens.at[rows, columns].set(tokens, mode="drop"), self.length + counts)


class _Remembering(Constraint):
    """A constraint whose state is the history of its rows."""

    def init(self, request: Request, prompts: Prompts, width: int) -> History:
        return History.of(request, prompts, width)

    def advance(self, state: History, tokens: Int[Array, " R"]) -> History:
        return state.add(tokens)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["penalty"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class RepetitionPenalty(_Remembering):
    """Makes tokens that occurred before less probable: divides what is positive, multiplies what is negative.

    Attributes:
      penalty: above 1 discourages, 1 does nothing. Changing it compiles nothing new.

    Source: Keskar et al., "CTRL: A Conditional Transformer Language Model" (2019), section 4.1. Beam search works on
    log-probabilities, where it always multiplies, as in Hugging Face's.
    """

    penalty: float

    def check(self, batch: int) -> None:
        del batch
        if not self.penalty > 0:
            raise ValueError(f"RepetitionPenalty has penalty={self.penalty}; expected a number above 0; 1 is neutral.")

    def apply(self, scores: Float[Array, "R V"], state: History, request: Request) -> Float[Array, "R V"]:
        vocabulary = scores.shape[-1]
        rows = jnp.arange(len(scores))[:, None]
        tokens = state.known(vocabulary)  # what does not count lies outside of the vocabulary and is dropped
        old = jnp.take_along_axis(scores, jnp.minimum(tokens, vocabulary - 1), axis=1)
        return scores.at[rows, tokens].set(jnp.where(old < 0, old * self.penalty, old / self.penalty), mode="drop")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NoRepeatNGram(_Remembering):
    """Bans every token that would complete an n-gram which the row already holds.

    Attributes:
      n: tokens of an n-gram; 1 writes no token twice.

    Source: Paulus et al., "A Deep Reinforced Model for Abstractive Summarization" (2017), section 2.5.
    """

    n: int

    def check(self, batch: int) -> None:
        del batch
        if self.n < 1:
            raise ValueError(f"NoRepeatNGram has n={self.n}; expected at least 1.")

    def apply(self, scores: Float[Array, "R V"], state: History, request: Request) -> Float[Array, "R V"]:
        vocabulary, length = scores.shape[-1], state.tokens.shape[1]
        if length < self.n:
            return scores
        starts = jnp.arange(length - self.n + 1)
        complete = starts + self.n <= state.length[:, None]  # [R W], windows of n tokens that count
        repeated = complete
        for offset in range(self.n - 1):
            last = jnp.maximum(state.length - self.n + 1 + offset, 0)[:, None]
            repeated &= state.tokens[:, offset : offset + len(starts)] == jnp.take_along_axis(state.tokens, last, 1)
        banned = jnp.where(repeated, state.tokens[:, self.n - 1 :], vocabulary)
        return scores.at[jnp.arange(len(scores))[:, None], banned].set(-jnp.inf, mode="drop")
