"""What a constraint is, and how several of them join a strategy.

Glossary:

* *banned*: a token at -inf, which no strategy chooses.
* *forced*: the only token that is left, at log-probability 0.
* *dead end*: a row in which every token is banned. EOS then ends it and its score falls by 1e7, so that a search never
  prefers it and whoever reads the score can tell.

A constraint is a pure state machine over rows, like a strategy: `init` makes its state from the prompts, `apply`
changes the logits of every row, `advance` takes note of the token that every row got. Every array of its state has the
rows on axis 0, so that whoever reorders rows (beam search) or takes tokens back (speculative decoding) can do so
without knowing the constraint.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Request, Strategy
from flaxformer.types import Array, PRNGKey


class Constraint(abc.ABC):
    """Says which tokens may come next: a pure state machine. Implementations are frozen dataclasses, and pytrees."""

    def check(self, batch: int) -> None:
        """Raises ValueError for settings that cannot work. Called outside of jit."""
        del batch

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises ValueError for ids that this vocabulary does not hold, where they are known."""
        del vocabulary

    def of_items(self, items: Int[np.ndarray, " b"]) -> Constraint:
        """The constraint for some of the items, where it holds something for each."""
        return self

    @abc.abstractmethod
    def init(self, request: Request, prompts: Prompts, width: int) -> Any:
        """The state before the first token: arrays `[R ...]` of R = B * width rows."""

    @abc.abstractmethod
    def apply(self, scores: Float[Array, "R V"], state: Any, request: Request) -> Float[Array, "R V"]:
        """Logits or log-probabilities of the next token, with what is banned at -inf."""

    @abc.abstractmethod
    def advance(self, state: Any, tokens: Int[Array, " R"]) -> Any:
        """The state after every row got a token."""


def none_written(prompts: Prompts, width: int) -> Int[Array, " R"]:
    """`[R]`, how many new tokens each row has: 0."""
    return jnp.zeros((len(prompts.lengths) * width,), jnp.int32)


def check_ids(name: str, ids: Any, vocabulary: int) -> None:
    """Refuses ids outside the vocabulary, where they are known.

    Raises:
      ValueError: naming the first of them.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(ids)):
        return
    for token in np.ravel(np.asarray(ids)).tolist():
        if not 0 <= token < vocabulary:
            raise ValueError(f"{name} holds the id {token}; expected 0 to {vocabulary - 1}, the model's vocabulary.")


def only(scores: Float[Array, "R V"], tokens: Int[Array, " R"], where: Bool[Array, " R"]) -> Float[Array, "R V"]:
    """`scores` with `tokens` forced in the rows given by `where`."""
    chosen = jnp.arange(scores.shape[-1]) == tokens[:, None]
    return jnp.where(where[:, None], jnp.where(chosen, 0.0, -jnp.inf), scores)


def apply_all(
    constraints: tuple[Constraint, ...], scores: Float[Array, "R V"], states: tuple[Any, ...], request: Request
) -> Float[Array, "R V"]:
    """All constraints one after another; a dead end is left with EOS, at `NEG_INF`."""
    for constraint, state in zip(constraints, states, strict=True):
        scores = constraint.apply(scores, state, request)
    dead = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)
    eos = jnp.arange(scores.shape[-1]) == request.eos_ids[0]
    return jnp.where(dead & eos, NEG_INF, scores)


def advance_all(constraints: tuple[Constraint, ...], states: tuple[Any, ...], tokens: Int[Array, " R"]) -> Any:
    """The states of all constraints after a token."""
    return tuple(constraint.advance(state, tokens) for constraint, state in zip(constraints, states, strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constrained(Strategy):
    """A strategy that only writes what its constraints allow.

    Attributes:
      strategy: what chooses.
      constraints: applied in this order.
    """

    strategy: Strategy
    constraints: tuple[Constraint, ...]

    @property
    def wants_hidden(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.strategy.wants_hidden

    @property
    def reads_last(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.strategy.reads_last

    @property
    def width(self) -> int:
        return self.strategy.width

    def check(self, batch: int) -> None:
        for part in (self.strategy, *self.constraints):
            part.check(batch)

    def check_vocabulary(self, vocabulary: int) -> None:
        for part in (self.strategy, *self.constraints):
            part.check_vocabulary(vocabulary)

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> Any:
        states = tuple(constraint.init(request, prompts, self.width) for constraint in self.constraints)
        return _State(self.strategy.init(request, prompts, rng), states, request)

    def update(self, logits: Float[Array, "R V"], state: Any, constrain: Any = None, **seen: Any) -> Any:
        del constrain  # nothing wraps a constrained strategy in further constraints
        allow = lambda scores: apply_all(self.constraints, scores, state.states, state.request)  # noqa: E731
        tokens, parents, inner = self.strategy.update(logits, state.inner, allow, **seen)
        states = state.states
        if parents is not None:
            states = jax.tree.map(lambda x: jnp.take(x, parents, axis=0, mode="clip"), states)
        return tokens, parents, _State(inner, advance_all(self.constraints, states, tokens), state.request)

    def done(self, state: Any) -> Bool[Array, ""]:
        return self.strategy.done(state.inner)

    def finish(self, state: Any) -> Any:
        return self.strategy.finish(state.inner)

    def going(self, state: Any) -> Any:
        return self.strategy.going(state.inner)

    def so_far(self, state: Any) -> Any:
        return self.strategy.so_far(state.inner)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    inner: Any
    states: tuple[Any, ...]
    request: Request = dataclasses.field(metadata={"static": True})
