"""What greedy search and sampling share: rows that are written independently of one another, each by a law.

Glossary:

* *law*: `[R V]` log-probabilities of the distribution that a row's next token is drawn from; greedy search's has one
  token. A draft model guesses ahead by the same law, see `flaxformer.decoding.speculative`.
"""

from __future__ import annotations

import abc

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.strategies.base import Generated, Request, Strategy, write_at
from flaxformer.types import Array, PRNGKey


class RowState(flax.struct.PyTreeNode):
    """Where every row stands.

    Attributes:
      step: tokens written so far.
      tokens: `[T R]`.
      scores: `[R]`, log-probability of what is written.
      lengths: `[R]`, tokens before the padding.
      ended: `[R]`, whether EOS is written.
      rng: the key of the steps to come.
      request: static.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "T R"]
    scores: Float[Array, " R"]
    lengths: Int[Array, " R"]
    ended: Bool[Array, " R"]
    rng: PRNGKey
    request: Request = flax.struct.field(pytree_node=False)

    @classmethod
    def start(cls, request: Request, rows: int, rng: PRNGKey) -> RowState:
        return cls(
            step=jnp.zeros((), jnp.int32),
            tokens=jnp.full((request.max_new_tokens, rows), request.pad_id, jnp.int32),
            scores=jnp.zeros((rows,), jnp.float32),
            lengths=jnp.zeros((rows,), jnp.int32),
            ended=jnp.zeros((rows,), bool),
            rng=rng,
            request=request,
        )

    def write(self, tokens: Int[Array, " R"], log_probs: Float[Array, " R"]) -> tuple[Int[Array, " R"], RowState]:
        """The tokens that count (padding in rows that ended before), and the state after them."""
        tokens = jnp.where(self.ended, self.request.pad_id, tokens)
        state = self.replace(
            step=self.step + 1,
            tokens=write_at(self.tokens, tokens, self.step),
            scores=self.scores + jnp.where(self.ended, 0.0, log_probs),
            lengths=self.lengths + ~self.ended,
            ended=self.ended | self.request.ends(tokens),
        )
        return tokens, state

    def going(self) -> Bool[Array, " B"]:
        """Items of which some row has not ended."""
        return ~jnp.all(self.ended.reshape(self.request.batch, -1), axis=1)

    def so_far(self) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        """What is written, and how much of it."""
        return self.tokens.T, self.lengths

    def done(self) -> Bool[Array, ""]:
        return jnp.all(self.ended) | (self.step >= self.request.max_new_tokens)

    def finish(self) -> Generated:
        """The rows of every item by falling score; the earlier row first among equals."""
        batch = self.request.batch
        scores = self.scores.reshape(batch, -1)  # [B n]
        order = jnp.argsort(-scores, axis=1, stable=True)
        tokens = self.tokens.T.reshape(batch, scores.shape[1], -1)  # [B n T]
        return Generated(
            tokens=jnp.take_along_axis(tokens, order[..., None], axis=1),
            scores=jnp.take_along_axis(scores, order, axis=1),
            lengths=jnp.take_along_axis(self.lengths.reshape(batch, -1), order, axis=1),
        )


class RowStrategy(Strategy):
    """A strategy that draws each row by itself."""

    @abc.abstractmethod
    def law(self, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
        """Log-probabilities of the distribution that tokens are drawn from, given logits that are allowed."""

    @abc.abstractmethod
    def worth(
        self, logits: Float[Array, "R V"], law: Float[Array, "R V"], tokens: Int[Array, " R"]
    ) -> Float[Array, " R"]:
        """What tokens add to the score of their rows, given the model's own logits and the law."""

    def done(self, state: RowState) -> Bool[Array, ""]:
        return state.done()

    def finish(self, state: RowState) -> Generated:
        return state.finish()

    def going(self, state: RowState) -> Bool[Array, " B"]:
        return state.going()

    def so_far(self, state: RowState) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        return state.so_far()
