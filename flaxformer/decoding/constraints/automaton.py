"""Outputs that a finite automaton accepts, such as one of a list of permitted sequences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.constraints.base import Constraint, check_ids
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Request
from flaxformer.types import Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["first", "tokens", "targets"], meta_fields=["fan_out"]
)
@dataclasses.dataclass(frozen=True)
class Automaton(Constraint):
    """Allows the tokens on the edges that leave a row's state; every row starts in state 0.

    Edges lie state after state, so that a table of many states is as small as its edges are few. Where a row may end,
    an edge carries EOS. Make one with `from_sequences` or `from_table`.

    Attributes:
      first: `[N + 1]`, where the edges of each state begin. Arrays of the same shapes compile nothing new.
      tokens: `[E]`, the token on each edge.
      targets: `[E]`, the state to which it leads.
      fan_out: the largest number of edges that leave a state (static).
    """

    first: Int[Array, " N1"]
    tokens: Int[Array, " E"]
    targets: Int[Array, " E"]
    fan_out: int

    @classmethod
    def from_table(cls, table: Sequence[Mapping[int, int]]) -> Automaton:
        """From one dictionary per state, token to next state.

        >>> Automaton.from_table([{5: 1, 6: 0}, {1: 1}]).fan_out  # any number of 6, one 5, then EOS (1)
        2

        Raises:
          ValueError: for an empty table, or edges to states that it does not have.
        """
        for state, edges in enumerate(table):
            for token, target in edges.items():
                if not 0 <= target < len(table):
                    raise ValueError(
                        f"token {token} leads from state {state} to state {target}; expected 0 to {len(table) - 1}, "
                        f"for the table has {len(table)} states."
                    )
        if not any(table):
            raise ValueError("the automaton has no edges; expected at least one token to be allowed.")
        first = np.cumsum([0, *(len(edges) for edges in table)])
        tokens = [token for edges in table for token in edges]
        targets = [target for edges in table for target in edges.values()]
        arrays: Any = [np.asarray(x, np.int32) for x in (first, tokens, targets)]
        return cls(*arrays, fan_out=max(map(len, table)))

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]], eos_id: int) -> Automaton:
        """The trie of permitted outputs, each followed by EOS.

        >>> Automaton.from_sequences([[5, 6], [5, 7]], eos_id=1).tokens.tolist()
        [5, 6, 7, 1, 1]
        """
        table: list[dict[int, int]] = [{}]
        for sequence in sequences:
            state = 0
            for token in (*(int(token) for token in sequence), eos_id):
                if token not in table[state]:
                    table[state][token] = len(table)
                    table.append({})
                state = table[state][token]
        return cls.from_table(table)

    def check_vocabulary(self, vocabulary: int) -> None:
        if not isinstance(self.tokens, Tracer):
            check_ids("Automaton.tokens", [self.tokens.min(), self.tokens.max()], vocabulary)

    def init(self, request: Request, prompts: Prompts, width: int) -> Int[Array, " R"]:
        return jnp.zeros((request.batch * width,), jnp.int32)

    def apply(self, scores: Float[Array, "R V"], state: Int[Array, " R"], request: Request) -> Float[Array, "R V"]:
        tokens, _, real = self._edges(state)
        rows = jnp.arange(len(scores))[:, None]
        allowed = (
            jnp.zeros(scores.shape, bool).at[rows, jnp.where(real, tokens, scores.shape[-1])].set(True, mode="drop")
        )
        return jnp.where(allowed, scores, -jnp.inf)

    def advance(self, state: Int[Array, " R"], tokens: Int[Array, " R"]) -> Int[Array, " R"]:
        """The state behind the edge of that token; a row that leaves the automaton (it has ended) stays where it is."""
        known, targets, real = self._edges(state)
        taken = real & (known == tokens[:, None])
        target = jnp.sum(jnp.where(taken, targets, 0), axis=1)
        return jnp.where(jnp.any(taken, axis=1), target, state)

    def _edges(self, state: Int[Array, " R"]) -> tuple[Int[Array, "R F"], Int[Array, "R F"], Bool[Array, "R F"]]:
        """Tokens and targets of the edges that leave each row's state, and which of them are real."""
        start, end = (jnp.take(self.first, state + more, mode="clip")[:, None] for more in (0, 1))
        where = start + jnp.arange(self.fan_out)
        pick = functools.partial(jnp.take, indices=where, mode="clip")
        return pick(jnp.asarray(self.tokens)), pick(jnp.asarray(self.targets)), where < end
