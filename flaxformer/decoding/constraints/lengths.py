"""Constraints on how long a row becomes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.constraints.base import Constraint, none_written, only
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Request
from flaxformer.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinLength(Constraint):
    """Bans EOS until a row has this many new tokens before it.

    Attributes:
      tokens: new tokens before EOS, at least. Changing it compiles nothing new.
    """

    tokens: int

    def check(self, batch: int) -> None:
        del batch
        if self.tokens < 0:
            raise ValueError(f"MinLength has tokens={self.tokens}; expected at least 0 tokens before EOS.")

    def init(self, request: Request, prompts: Prompts, width: int) -> Int[Array, " R"]:
        return none_written(prompts, width)

    def apply(self, scores: Float[Array, "R V"], state: Int[Array, " R"], request: Request) -> Float[Array, "R V"]:
        eos = request.ends(jnp.arange(scores.shape[-1]))
        return jnp.where(eos & (state < self.tokens)[:, None], -jnp.inf, scores)

    def advance(self, state: Int[Array, " R"], tokens: Int[Array, " R"]) -> Int[Array, " R"]:
        return state + 1


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ForcedEnd(Constraint):
    """The last token that `max_new_tokens` allows is EOS. It costs nothing in beam search."""

    def init(self, request: Request, prompts: Prompts, width: int) -> Int[Array, " R"]:
        return none_written(prompts, width)

    def apply(self, scores: Float[Array, "R V"], state: Int[Array, " R"], request: Request) -> Float[Array, "R V"]:
        return only(scores, jnp.full_like(state, request.eos_ids[0]), state == request.max_new_tokens - 1)

    def advance(self, state: Int[Array, " R"], tokens: Int[Array, " R"]) -> Int[Array, " R"]:
        return state + 1
