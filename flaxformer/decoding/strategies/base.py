"""What a decoding strategy is.

Glossary:

* *item*: one entry of the batch, B of them.
* *row*: one sequence being written. A strategy keeps `width` rows per item; row `b * width + k` is row k of item b.
* *parents*: which row each new row continues. None: each continues itself.
* *request*: what is asked of every item, the same for all strategies.

A strategy is a pure state machine: `init` makes its state, `update` turns the logits of every row into the next token
of every row, `done` says when nothing can change any more, `finish` reads the results off. It never sees a model or a
cache. What a request allows (`flaxformer.decoding.constraints`) reaches it as a function on logits, so that each
strategy says where in its own arithmetic that function belongs.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.prompts import Prompts
from flaxformer.types import Array, PRNGKey

Constrain = Callable[[Float[Array, "R V"]], Float[Array, "R V"]]
"""What a request allows, as a function on logits."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of every item of a batch.

    Attributes:
      batch: items, B.
      max_new_tokens: tokens to write per row at most, T.
      eos_id: the token that ends a sequence, or several of which each does; where one has to be written, the first.
      pad_id: what is written after it.
    """

    batch: int
    max_new_tokens: int
    eos_id: int | tuple[int, ...]
    pad_id: int = 0

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end a sequence."""
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    def ends(self, tokens: Int[Array, "*R"]) -> Bool[Array, "*R"]:
        """Which tokens end their sequence."""
        return functools.reduce(jnp.logical_or, [tokens == eos for eos in self.eos_ids])


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


class Strategy(abc.ABC):
    """A pure state machine from logits to tokens. Implementations are frozen dataclasses, and pytrees.

    Attributes:
      wants_hidden: `update` is also given the model's last hidden states.
      reads_last: the last token of every row is read too, which takes one more slot of the cache.
    """

    wants_hidden: ClassVar[bool] = False
    reads_last: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """Rows per item."""
        return 1

    def check(self, batch: int) -> None:
        """Raises ValueError for settings that cannot work. Called with concrete numbers, outside of jit."""
        del batch

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises ValueError for settings that this vocabulary does not allow. Called once the model is known."""
        del vocabulary

    @abc.abstractmethod
    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> Any:
        """The state before the first token."""

    @abc.abstractmethod
    def update(
        self, logits: Float[Array, "R V"], state: Any, constrain: Constrain | None = None
    ) -> tuple[Int[Array, " R"], Int[Array, " R"] | None, Any]:
        """The next token of every row, the row that each continues, and the state after it.

        Args:
          logits: `[R V]` of the next token, as the model gave them.
          state: as `init` or `update` returned it.
          constrain: what the request allows: takes logits or log-probabilities `[R V]` and returns them with what is
            banned at -inf and what is discouraged lowered. None: everything.
        """

    @abc.abstractmethod
    def done(self, state: Any) -> Bool[Array, ""]:
        """Whether further tokens would change nothing."""

    @abc.abstractmethod
    def finish(self, state: Any) -> Any:
        """The results so far: `Generated`."""

    def going(self, state: Any) -> Bool[Array, " B"] | None:
        """Which items still write; None where that is not known."""
        return None

    def of_items(self, items: Int[np.ndarray, " b"]) -> Strategy:
        """The strategy for some of the items, where it holds something for each."""
        return self

    def so_far(self, state: Any) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        """The tokens of every row that are certain to stay, and how many these are.

        Raises:
          ValueError: for strategies that choose among whole sequences.
        """
        raise ValueError(
            f"{type(self).__name__} knows its tokens only at the end; expected Greedy(), Sample(...) or "
            "Contrastive(...) for a stream. Use generate."
        )


def write_at(trace: Array, row: Array, index: Int[Array, ""]) -> Array:
    """`trace [T ...]` with `row [...]` at `index`: time comes first so that a write is one contiguous copy."""
    return jnp.asarray(trace).at[index].set(row, mode="drop", unique_indices=True, indices_are_sorted=True)
