"""What a decoding strategy is.

Glossary:

* *item*: one entry of the batch, B of them.
* *row*: one sequence being written. A strategy keeps `width` rows per item; row `b * width + k` is row k of item b.
* *parents*: which row each new row continues. None: each continues itself.
* *request*: what is asked of every item, the same for all strategies.

A strategy is a pure state machine: `init` makes its state, `update` turns the logits of every row into the next token
of every row, `done` says when nothing can change any more, `finish` reads the results off. It never sees a model or a
cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.types import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of every item of a batch.

    Attributes:
      batch: items, B.
      max_new_tokens: tokens to write per row at most, T.
      eos_id: the token that ends a sequence.
      pad_id: what is written after it.
    """

    batch: int
    max_new_tokens: int
    eos_id: int
    pad_id: int = 0


class Generated(NamedTuple):
    """The results of a strategy, best first.

    Attributes:
      tokens: `[B n T]` int32, EOS included, `pad_id` after it.
      scores: `[B n]` float32.
      lengths: `[B n]` int32, tokens before the padding.
    """

    tokens: Int[Array, "B n T"]
    scores: Float[Array, "B n"]
    lengths: Int[Array, "B n"]


class Strategy(Protocol):
    """A pure state machine from logits to tokens. Implementations are frozen dataclasses."""

    @property
    def width(self) -> int:
        """Rows per item."""
        ...

    def check(self, batch: int) -> None:
        """Raises ValueError for settings that cannot work. Called with concrete numbers, outside of jit."""
        ...

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises ValueError for settings that this vocabulary does not allow. Called once the model is known."""
        ...

    def init(self, request: Request, prompt_lengths: Int[Array, " B"], rng: PRNGKey) -> Any:
        """The state before the first token."""
        ...

    def update(self, logits: Float[Array, "R V"], state: Any) -> tuple[Int[Array, " R"], Int[Array, " R"] | None, Any]:
        """The next token of every row, the row that each continues, and the state after it."""
        ...

    def done(self, state: Any) -> Bool[Array, ""]:
        """Whether further tokens would change nothing."""
        ...

    def finish(self, state: Any) -> Generated:
        """The results so far."""
        ...


def write_at(trace: Array, row: Array, index: Int[Array, ""]) -> Array:
    """`trace [T ...]` with `row [...]` at `index`: time comes first so that a write is one contiguous copy."""
    return jnp.asarray(trace).at[index].set(row, mode="drop", unique_indices=True, indices_are_sorted=True)
