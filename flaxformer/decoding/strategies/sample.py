"""Sampling: tokens drawn from the model's distribution, sharpened or cut as asked."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF, argmax, log_prob_of, top_k_mask, top_p_mask
from flaxformer.decoding.strategies.base import Generated, Request
from flaxformer.decoding.strategies.rows import RowState
from flaxformer.types import Array, PRNGKey

MIN_TEMPERATURE = 1e-4
"""Temperatures up to this take the most probable token."""


def draw(
    key: PRNGKey,
    logits: Float[Array, "R V"],
    temperature: float | Float[Array, "#R"],
    *,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    rescale_log_probs: bool = True,
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """One token per row and its log-probability.

    Args:
      key: used as it is, for all rows together.
      logits: `[R V]` float32.
      temperature: a scalar, or one per row. Up to `MIN_TEMPERATURE` the most probable token is taken; top-k and top-p
        then make no difference, and the log-probability is 0 if rescaled.
      top_k: keep the k largest logits and what equals the k-th; None keeps all.
      top_p: keep the smallest set of most probable tokens of at least this total; None keeps all.
      rescale_log_probs: log-probabilities after temperature and cuts instead of before.
    """

    def hot() -> tuple[Array, Array]:
        x = logits / jnp.maximum(jnp.asarray(temperature, jnp.float32), MIN_TEMPERATURE)[..., None]
        if top_k is not None:
            x = jnp.where(top_k_mask(x, top_k), x, NEG_INF)
        if top_p is not None:
            x = jnp.where(top_p_mask(x, top_p), x, NEG_INF)
        tokens = jax.random.categorical(key, x).astype(jnp.int32)
        return tokens, log_prob_of(x if rescale_log_probs else logits, tokens)

    def cold() -> tuple[Array, Array]:
        tokens = argmax(logits).astype(jnp.int32)
        return tokens, jnp.zeros(tokens.shape, jnp.float32) if rescale_log_probs else log_prob_of(logits, tokens)

    if isinstance(temperature, (int, float)):
        return hot() if temperature > MIN_TEMPERATURE else cold()
    is_hot = temperature > MIN_TEMPERATURE
    if is_hot.ndim == 0:
        return jax.lax.cond(is_hot, hot, cold)
    return jax.tree.map(functools.partial(jnp.where, is_hot), hot(), cold())


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p"],
    meta_fields=["top_k", "num_samples", "rescale_log_probs"],
)
@dataclasses.dataclass(frozen=True)
class Sample:
    """Independent samples, returned by falling score.

    Numbers that are data (`temperature`, `top_p`) may change from call to call without compiling anything new.

    Attributes:
      temperature: divides the logits: a number, or an array `[B]` with one per item.
      top_k: keep the k largest logits (and what equals the k-th), before `top_p`. None: all.
      top_p: keep the smallest set of most probable tokens whose total is at least this. None: all.
      num_samples: samples per item, n.
      rescale_log_probs: scores are log-probabilities under the distribution that was drawn from, as in T5X; False
        takes the model's own, before temperature and cuts.

    Source: Fan et al., "Hierarchical Neural Story Generation" (2018) for top-k; Holtzman et al., "The Curious Case of
    Neural Text Degeneration" (2020) for top-p.
    """

    temperature: float | Float[Array, " B"] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_samples: int = 1
    rescale_log_probs: bool = True

    @property
    def width(self) -> int:
        return self.num_samples

    def check(self, batch: int) -> None:
        known = not isinstance(self.temperature, Tracer)
        if np.shape(self.temperature) not in ((), (batch,)) or (
            known and not np.all(np.asarray(self.temperature) >= 0)
        ):
            raise ValueError(
                f"temperature is {self.temperature}; expected a number of at least 0, or an array of {batch} such "
                "numbers, one per item. temperature=0 takes the most probable token."
            )
        if self.top_p is not None and not isinstance(self.top_p, Tracer) and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a probability in (0, 1]. top_p=None keeps every token.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; expected at least 1 sample per item.")

    def check_vocabulary(self, vocabulary: int) -> None:
        if self.top_k is not None and not 1 <= self.top_k <= vocabulary:
            raise ValueError(
                f"top_k is {self.top_k}; expected between 1 and the vocabulary of {vocabulary} tokens. "
                "top_k=None keeps every token."
            )

    def init(self, request: Request, prompt_lengths: Int[Array, " B"], rng: PRNGKey) -> RowState:
        return RowState.start(request, len(prompt_lengths) * self.num_samples, rng)

    def update(self, logits: Float[Array, "R V"], state: RowState) -> tuple[Int[Array, " R"], None, RowState]:
        use, carry = jax.random.split(state.rng)
        temperature = jnp.asarray(self.temperature, jnp.float32)
        tokens, log_probs = draw(
            use,
            logits.astype(jnp.float32),
            temperature if temperature.ndim == 0 else jnp.repeat(temperature, self.num_samples),
            top_k=self.top_k,
            top_p=self.top_p,
            rescale_log_probs=self.rescale_log_probs,
        )
        tokens, state = state.replace(rng=carry).write(tokens, log_probs)
        return tokens, None, state

    def done(self, state: RowState) -> Bool[Array, ""]:
        return state.done()

    def finish(self, state: RowState) -> Generated:
        return state.finish()
