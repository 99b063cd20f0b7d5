"""Constraints that name tokens: some are never written, some are written first."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from flaxformer.decoding.constraints.base import Constraint, check_ids, none_written, only
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Request
from flaxformer.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Banned(Constraint):
    """Tokens that are never written, or not among the first ones.

    Attributes:
      tokens: their ids.
      first: how many new tokens of a row this concerns; None: all.
    """

    tokens: tuple[int, ...]
    first: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "tokens", tuple(int(token) for token in self.tokens))

    def check(self, batch: int) -> None:
        del batch
        if not self.tokens:
            raise ValueError("Banned has tokens=(); expected at least one id. Leave the constraint out.")
        if self.first is not None and self.first < 1:
            raise ValueError(f"Banned has first={self.first}; expected at least 1, or None for all tokens.")

    def check_vocabulary(self, vocabulary: int) -> None:
        check_ids("Banned.tokens", self.tokens, vocabulary)

    def init(self, request: Request, prompts: Prompts, width: int) -> Int[Array, " R"]:
        return none_written(prompts, width)

    def apply(self, scores: Float[Array, "R V"], state: Int[Array, " R"], request: Request) -> Float[Array, "R V"]:
        banned = np.zeros(scores.shape[-1], bool)
        banned[list(self.tokens)] = True
        concerned = banned if self.first is None else banned & (state < self.first)[:, None]
        return jnp.where(concerned, -jnp.inf, scores)

    def advance(self, state: Int[Array, " R"], tokens: Int[Array, " R"]) -> Int[Array, " R"]:
        return state + 1


class _Ahead(NamedTuple):
    """What is still forced: `[R P]`, and how many tokens are written, `[R]`."""

    tokens: Int[Array, "R P"]
    written: Int[Array, " R"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ForcedPrefix(Constraint):
    """The first new tokens are given. They cost nothing in beam search.

    `ForcedPrefix((bos,))` forces the first token, such as a language id. Unlike a prompt, what is forced belongs to the
    result and counts as new tokens.

    Attributes:
      tokens: `[P]`, or `[B P]` with a prefix per item, filled up with -1. Other ids of the same shape compile nothing
        new.
    """

    tokens: Sequence[int] | Int[Array, "... P"]

    def check(self, batch: int) -> None:
        shape = np.shape(self.tokens)
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != batch) or 0 in shape:
            raise ValueError(
                f"ForcedPrefix has tokens of shape {shape}; expected [length] or [{batch}, length], a prefix per item."
            )

    def check_vocabulary(self, vocabulary: int) -> None:
        known = not any(isinstance(token, Tracer) for token in jax.tree.leaves(self.tokens))
        check_ids("ForcedPrefix.tokens", np.maximum(np.asarray(self.tokens), 0) if known else (), vocabulary)

    def of_items(self, items: Int[np.ndarray, " b"]) -> ForcedPrefix:
        return self if np.ndim(self.tokens) == 1 else ForcedPrefix(jnp.asarray(self.tokens)[items])

    def init(self, request: Request, prompts: Prompts, width: int) -> _Ahead:
        tokens = jnp.atleast_2d(jnp.asarray(self.tokens, jnp.int32))
        tokens = jnp.broadcast_to(tokens, (request.batch, tokens.shape[1]))
        return _Ahead(jnp.repeat(tokens, width, axis=0), none_written(prompts, width))

    def apply(self, scores: Float[Array, "R V"], state: _Ahead, request: Request) -> Float[Array, "R V"]:
        length = state.tokens.shape[1]
        column = jnp.minimum(state.written, length - 1)[:, None]
        forced = jnp.take_along_axis(state.tokens, column, axis=1)[:, 0]
        return only(scores, forced, (state.written < length) & (forced >= 0))

    def advance(self, state: _Ahead, tokens: Int[Array, " R"]) -> _Ahead:
        return state._replace(written=state.written + 1)
