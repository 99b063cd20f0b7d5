"""Sampling: tokens drawn from the model's distribution, sharpened or cut as asked."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from flaxformer.decoding import filters
from flaxformer.decoding.logits import NEG_INF, argmax, dead_end, log_prob_of
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Request
from flaxformer.decoding.strategies.rows import RowState, RowStrategy
from flaxformer.types import Array, PRNGKey

MIN_TEMPERATURE = 1e-4
"""Temperatures up to this take the most probable token."""


_MASKS = {
    "top_p": filters.top_p_mask,
    "min_p": filters.min_p_mask,
    "typical_p": filters.typical_mask,
    "epsilon": filters.epsilon_mask,
    "eta": filters.eta_mask,
}
"""The cuts behind temperature and top-k, in the order in which they are made."""


def sharpened(
    logits: Float[Array, "R V"],
    temperature: float | Float[Array, "#R"],
    *,
    top_k: int | None = None,
    **cuts: float | Float[Array, ""] | None,
) -> Float[Array, "R V"]:
    """Logits of the distribution to draw from: over the temperature, and with what is cut at `NEG_INF`."""
    x = logits / jnp.maximum(jnp.asarray(temperature, jnp.float32), MIN_TEMPERATURE)[..., None]
    if top_k is not None:
        x = jnp.where(filters.top_k_mask(x, top_k), x, jnp.minimum(x, NEG_INF))
    for name, mask in _MASKS.items():
        p = cuts.get(name)
        if p is not None:
            x = jnp.where(mask(x, p), x, jnp.minimum(x, NEG_INF))  # what is banned stays below a dead end's EOS
    return x


def draw(
    key: PRNGKey,
    logits: Float[Array, "R V"],
    temperature: float | Float[Array, "#R"],
    *,
    top_k: int | None = None,
    rescale_log_probs: bool = True,
    **cuts: float | Float[Array, ""] | None,
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """One token per row and its log-probability.

    Args:
      key: used as it is, for all rows together.
      logits: `[R V]` float32.
      temperature: a scalar, or one per row. Up to `MIN_TEMPERATURE` the most probable token is taken; cuts then make
        no difference, and the log-probability is 0 if rescaled.
      top_k: keep the k largest logits and what equals the k-th; None keeps all.
      rescale_log_probs: log-probabilities after temperature and cuts instead of before.
      **cuts: `top_p`, `min_p`, `typical_p`, `epsilon`, `eta` as in `Sample`; None keeps all.
    """

    def hot() -> tuple[Array, Array]:
        x = sharpened(logits, temperature, top_k=top_k, **cuts)
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
    data_fields=["temperature", *_MASKS],
    meta_fields=["top_k", "num_samples", "rescale_log_probs"],
)
@dataclasses.dataclass(frozen=True)
class Sample(RowStrategy):
    """Independent samples, returned by falling score.

    Cuts are made in the order of the attributes, each on what those before have left. Numbers that are data
    (`temperature`, `top_p`, ...) may change from call to call without compiling anything new.

    Attributes:
      temperature: divides the logits: a number, or an array `[B]` with one per item.
      top_k: keep the k largest logits (and what equals the k-th), before `top_p`. None: all.
      top_p: keep the smallest set of most probable tokens whose total is at least this. None: all.
      min_p: keep tokens at least this many times as probable as the most probable one. None: all.
      typical_p: keep the smallest set of this total whose information is nearest to the entropy. None: all.
      epsilon: keep tokens of at least this probability. None: all.
      eta: the same with a threshold that falls with the entropy. None: all.
      num_samples: samples per item, n.
      rescale_log_probs: scores are log-probabilities under the distribution that was drawn from, as in T5X; False
        takes the model's own, before constraints, temperature and cuts.

    Source: Fan et al., "Hierarchical Neural Story Generation" (2018) for top-k; Holtzman et al., "The Curious Case of
    Neural Text Degeneration" (2020) for top-p; `flaxformer.decoding.filters` for the others.
    """

    temperature: float | Float[Array, " B"] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon: float | None = None
    eta: float | None = None
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
        for name in _MASKS:
            p = getattr(self, name)
            if p is not None and not isinstance(p, Tracer) and not 0 < p <= 1:
                raise ValueError(f"{name} is {p}; expected a probability in (0, 1]. {name}=None keeps every token.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; expected at least 1 sample per item.")

    def check_vocabulary(self, vocabulary: int) -> None:
        if self.top_k is not None and not 1 <= self.top_k <= vocabulary:
            raise ValueError(
                f"top_k is {self.top_k}; expected between 1 and the vocabulary of {vocabulary} tokens. "
                "top_k=None keeps every token."
            )

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> RowState:
        return RowState.start(request, request.batch * self.num_samples, rng)

    def update(
        self, logits: Float[Array, "R V"], state: RowState, constrain: Constrain | None = None
    ) -> tuple[Int[Array, " R"], None, RowState]:
        use, carry = jax.random.split(state.rng)
        logits = logits.astype(jnp.float32)
        allowed = logits if constrain is None else constrain(logits)
        tokens, log_probs = draw(
            use,
            allowed,
            self._row_temperatures(),
            top_k=self.top_k,
            rescale_log_probs=self.rescale_log_probs,
            **self._cuts(),
        )
        if constrain is not None:
            own = log_probs if self.rescale_log_probs else log_prob_of(logits, tokens)
            log_probs = own + dead_end(allowed, tokens)
        tokens, state = state.replace(rng=carry).write(tokens, log_probs)
        return tokens, None, state

    def of_items(self, items: Int[np.ndarray, " b"]) -> Sample:
        if np.ndim(self.temperature) == 0:
            return self
        return dataclasses.replace(self, temperature=jnp.asarray(self.temperature)[items])

    def law(self, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
        temperature = self._row_temperatures()
        cut = sharpened(logits, temperature, top_k=self.top_k, **self._cuts())
        coldest = jnp.where(jnp.arange(logits.shape[-1]) == argmax(logits)[:, None], 0.0, -jnp.inf)
        return jnp.where(temperature[..., None] > MIN_TEMPERATURE, jax.nn.log_softmax(cut), coldest)

    def worth(
        self, logits: Float[Array, "R V"], law: Float[Array, "R V"], tokens: Int[Array, " R"]
    ) -> Float[Array, " R"]:
        return log_prob_of(law if self.rescale_log_probs else logits, tokens)

    def _row_temperatures(self) -> Float[Array, "#R"]:
        temperature = jnp.asarray(self.temperature, jnp.float32)
        return temperature if temperature.ndim == 0 else jnp.repeat(temperature, self.num_samples)

    def _cuts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _MASKS if getattr(self, name) is not None}
