"""What a hypothesis is worth and when a search is over: the two rules in use.

Both keep the K best finished hypotheses by penalised score. They differ in the penalty, in which hypotheses count as
finished, and in when an item is closed.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF
from flaxformer.decoding.scores import brevity_penalty
from flaxformer.types import Array


class BeamRule(abc.ABC):
    """The arithmetic of `BeamSearch`, on its `BeamState`; K finished slots per item, C candidates, best first."""

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        return None

    @abc.abstractmethod
    def penalised(self, log_probs: Float[Array, "B C"], state: Any) -> Float[Array, "B C"]:
        """The scores of candidates that end with the token now being written."""

    @abc.abstractmethod
    def finishing(self, ended: Bool[Array, "B C"], state: Any) -> Bool[Array, "B C"]:
        """Which candidates become finished hypotheses; `ended` says which end with EOS."""

    @abc.abstractmethod
    def closed(self, state: Any) -> Bool[Array, " B"]:
        """Which items are over after the step just taken."""


def _worst_finished(state: Any) -> Float[Array, " B"]:
    return jnp.where(jnp.all(state.filled, axis=1), jnp.min(state.scores, axis=1), NEG_INF)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["alpha"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class BrevityPenalty(BeamRule):
    """T5X's rule: log-probability over `((5 + length) / 6) ** alpha`, the length counting prompt, new tokens and EOS.

    Only EOS finishes a hypothesis. An item is over when its best live hypothesis cannot beat the worst finished one
    even with the penalty of the greatest length.

    Attributes:
      alpha: above 0 favours long results, below 0 short ones; 0 compares plain log-probabilities. Changing it compiles
        nothing new. Below 0 the rule above, which is T5X's, ends searches that longer hypotheses might still win.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016), section 7.
    """

    alpha: float = 0.6

    def penalised(self, log_probs: Float[Array, "B C"], state: Any) -> Float[Array, "B C"]:
        return log_probs / brevity_penalty(self.alpha, state.step + 1 + state.prompt_lengths)[:, None]

    def finishing(self, ended: Bool[Array, "B C"], state: Any) -> Bool[Array, "B C"]:
        return ended

    def closed(self, state: Any) -> Bool[Array, " B"]:
        worst = jnp.where(state.filled, jnp.min(state.scores, axis=1, keepdims=True), NEG_INF)  # [B K]
        best = state.live_scores[:, -1:] / brevity_penalty(self.alpha, state.longest)[:, None]  # [B 1]
        return jnp.all(worst > best, axis=1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["exponent"], meta_fields=["early_stopping"])
@dataclasses.dataclass(frozen=True)
class LengthPenalty(BeamRule):
    """Hugging Face's rule: log-probability over `n ** exponent`, n counting new tokens and EOS.

    Only candidates among the K best of a step finish with EOS; at the last step those K finish as they are. An item is
    closed for good once it has K finished hypotheses and its best live one, penalised, is not above the worst of them.

    Attributes:
      exponent: `length_penalty` there: above 0 favours long results. Changing it compiles nothing new.
      early_stopping: True closes an item as soon as it has K finished hypotheses. False penalises the best live
        hypothesis by its present length; "never", with a positive exponent, by `max_new_tokens`, which no longer
        result can undercut.

    Source: the beam search of transformers 5, whose recorded results the tests reproduce.
    """

    exponent: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def check(self) -> None:
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; expected True, False or 'never'.")

    def penalised(self, log_probs: Float[Array, "B C"], state: Any) -> Float[Array, "B C"]:
        return log_probs / self._penalty(state.step + 1)

    def finishing(self, ended: Bool[Array, "B C"], state: Any) -> Bool[Array, "B C"]:
        last = state.step + 1 >= state.request.max_new_tokens
        among_best = jnp.arange(ended.shape[1]) < state.live_scores.shape[1]
        return (ended | last) & among_best & ~state.closed[:, None]

    def closed(self, state: Any) -> Bool[Array, " B"]:
        full = jnp.all(state.filled, axis=1)
        if self.early_stopping is True:
            return state.closed | full
        written = state.step
        if self.early_stopping == "never":
            written = jnp.where(jnp.asarray(self.exponent) > 0, state.request.max_new_tokens, written)
        best = state.live_scores[:, -1] / self._penalty(written)
        return state.closed | (full & (best <= _worst_finished(state)))

    def _penalty(self, length: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.power(length.astype(jnp.float32), self.exponent)
