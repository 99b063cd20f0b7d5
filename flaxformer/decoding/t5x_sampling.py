"""T5X's `temperature_sample`: its signature, state and length accounting around `draw`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.strategies.sample import draw
from flaxformer.decoding.t5x_beam import DecodingState, StepFunction
from flaxformer.decoding.t5x_caches import cache_map, flat_batch_beam_expand
from flaxformer.types import Array


class SamplingLoopState(flax.struct.PyTreeNode):
    """The state that `state_callback_fn` and `logit_callback_fn` see; R = B * num_decodes rows.

    Attributes:
      step: steps so far.
      cur_index: `[R]`, position of the current token.
      sequences: `[R L+2]`; the last column collects what is written past the end.
      cache: the rows' cache.
      cur_token: `[R 1]`.
      ended: `[R]`.
      rng: the key of the steps to come.
      log_prob: `[R]`.
    """

    step: Int[Array, ""]
    cur_index: Int[Array, " R"]
    sequences: Int[Array, "R L2"]
    cache: Any
    cur_token: Int[Array, "R 1"]
    ended: Bool[Array, " R"]
    rng: Array
    log_prob: Float[Array, " R"]


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """One call of `temperature_sample`: the constants of its loop."""

    step_function: StepFunction
    choose: Callable[[Array, Array], tuple[Array, Array]]
    eos_id: int
    prompts: Int[Array, "R L2"]
    limits: Int[Array, " R"]
    state_callback_fn: Callable[[SamplingLoopState], SamplingLoopState] | None
    logit_callback_fn: Callable[[Array, SamplingLoopState], Array] | None

    def step(self, state: SamplingLoopState) -> SamplingLoopState:
        if self.state_callback_fn is not None:
            state = self.state_callback_fn(state)
        use, carry = jax.random.split(state.rng)
        seen = state.sequences[:, : self.prompts.shape[1] - 2]
        logits, cache = self.step_function(DecodingState(state.cur_index, seen, state.cur_token, state.cache))
        if self.logit_callback_fn is not None:
            logits = self.logit_callback_fn(logits, state)
        sampled, log_probs = self.choose(use, logits)
        return self.write(state.replace(cache=cache, rng=carry, step=state.step + 1), sampled, log_probs)

    def write(
        self, state: SamplingLoopState, sampled: Int[Array, " R"], log_probs: Float[Array, " R"]
    ) -> SamplingLoopState:
        index = jnp.minimum(state.cur_index, self.limits)
        rows = jnp.arange(len(index))
        given = self.prompts[rows, index + 1]
        tokens = jnp.where(state.ended, 0, jnp.where(given != 0, given, sampled))
        sequences = state.sequences.at[rows, index + 1].set(tokens)
        count = lambda x: jnp.sum(x == self.eos_id, axis=-1)  # noqa: E731
        return state.replace(
            cur_index=index + 1,
            sequences=sequences,
            cur_token=tokens[:, None],
            ended=state.ended | (count(sequences) > count(self.prompts)) | (index >= self.limits - 1),
            log_prob=state.log_prob + jnp.where(state.ended | (given != 0), 0.0, log_probs),
        )


def _chooser(temperature: Any, rows: int, **options: Any) -> Callable[[Array, Array], tuple[Array, Array]]:
    """How tokens are drawn. With one temperature per row, T5X draws every row by itself with the same key."""
    if jnp.ndim(temperature) == 0:
        return lambda key, logits: draw(key, logits.astype(jnp.float32), temperature, **options)
    per_item = jnp.asarray(temperature, jnp.float32)
    per_row = jnp.repeat(per_item, rows // len(per_item))

    def choose(key: Array, logits: Array) -> tuple[Array, Array]:
        one = lambda row, own: jax.tree.map(lambda x: x[0], draw(key, row[None], own, **options))  # noqa: E731
        return jax.vmap(one)(logits.astype(jnp.float32), per_row)

    return choose


def _limits(inputs: Array, max_decode_steps: Any, hard_limit: Any) -> Int[Array, " B"]:
    """`[B]`, the last column that may be written."""
    length = inputs.shape[1]
    full = jnp.full((len(inputs),), length, jnp.int32)
    if max_decode_steps is None:
        return full
    if hard_limit is not None and hard_limit > 0:
        max_decode_steps = jnp.minimum(max_decode_steps, hard_limit)
    if not isinstance(max_decode_steps, Tracer) and max_decode_steps > length:
        raise ValueError(
            f"max_decode_steps is {max_decode_steps}; expected at most the {length} columns of `inputs`. "
            "Pad `inputs` to the length of the result."
        )
    return jnp.minimum(full, jnp.sum(inputs != 0, axis=1) + max_decode_steps).astype(jnp.int32)


def temperature_sample(
    inputs: Int[Array, "B L"],
    cache: Any,
    tokens_to_logits: StepFunction,
    eos_id: int,
    decode_rng: Array | None = None,
    num_decodes: int = 1,
    temperature: float | Float[Array, " B"] = 1.0,
    topk: int = 1,
    topp: float = 0.0,
    cache_offset: int = 0,
    initial_index: Int[Array, " B"] | None = None,
    max_decode_steps: int | Array | None = None,
    max_decode_steps_hard_limit: int | None = None,
    rescale_log_probs: bool = True,
    state_callback_fn: Callable[[SamplingLoopState], SamplingLoopState] | None = None,
    logit_callback_fn: Callable[[Array, SamplingLoopState], Array] | None = None,
) -> tuple[Int[Array, "B n L"], Float[Array, "B n"]]:
    """Draws n = `num_decodes` sequences per item; results ascend by log-probability, the best is last.

    Args:
      inputs: `[B L]`, nonzero entries are a prompt; column 0 is ignored without `initial_index`.
      cache: cache of B items; it is expanded to B*n rows.
      tokens_to_logits: one step of the model, from a `DecodingState` to logits `[R V]` and the new cache.
      eos_id: ends a row when it was generated, not when the prompt holds it.
      decode_rng: None is `jax.random.PRNGKey(0)`.
      num_decodes: independent samples per item.
      temperature: a scalar, or one per item; up to 1e-4 takes the most probable token.
      topk: keep the k largest logits; 0 keeps all. The default makes sampling greedy.
      topp: keep the smallest most probable set of this total; 0 keeps all.
      cache_offset: axes before the batch axis of cache leaves.
      initial_index: `[B]`, given when the cache already holds that many prompt tokens.
      max_decode_steps: tokens after the prompt; None fills L.
      max_decode_steps_hard_limit: caps `max_decode_steps`, if positive.
      rescale_log_probs: log-probabilities after temperature and cuts instead of before.
      state_callback_fn: applied to the state before every step and once after the last.
      logit_callback_fn: applied to every step's logits.

    Returns:
      Sequences `[B n L]`, prompt and EOS included, and log-probabilities `[B n]`.

    Raises:
      ValueError: when both `topk` and `topp` are given, or `max_decode_steps` exceeds L.
    """
    if topk and topp:
        raise ValueError(f"topk={topk} and topp={topp} were given together; expected one of them to be 0.")
    batch, length = inputs.shape
    rows = batch * num_decodes
    expand = lambda x, offset=0: flat_batch_beam_expand(x, num_decodes, offset)  # noqa: E731
    prompts = expand(jnp.pad(inputs.astype(jnp.int32), ((0, 0), (0, 2))))
    prefilled = initial_index is not None
    index = expand(jnp.asarray(initial_index, jnp.int32)) if prefilled else jnp.zeros((rows,), jnp.int32)
    token = prompts[jnp.arange(rows), index] if prefilled else jnp.zeros((rows,), jnp.int32)
    state = SamplingLoopState(
        step=jnp.zeros((), jnp.int32),
        cur_index=index,
        sequences=prompts if prefilled else prompts.at[:, 0].set(0),
        cache=cache_map(lambda x: expand(x, cache_offset), cache, prefilled and num_decodes > 1),
        cur_token=token[:, None],
        ended=jnp.zeros((rows,), bool),
        rng=jax.random.PRNGKey(0) if decode_rng is None else decode_rng,
        log_prob=jnp.zeros((rows,), jnp.float32),
    )
    sampler = _Sampler(
        step_function=tokens_to_logits,
        choose=_chooser(temperature, rows, top_k=topk or None, top_p=topp or None, rescale_log_probs=rescale_log_probs),
        eos_id=eos_id,
        prompts=prompts,
        limits=expand(_limits(inputs, max_decode_steps, max_decode_steps_hard_limit)),
        state_callback_fn=state_callback_fn,
        logit_callback_fn=logit_callback_fn,
    )
    state = jax.lax.while_loop(lambda state: ~jnp.all(state.ended), sampler.step, state)
    if state_callback_fn is not None:
        state = state_callback_fn(state)
    log_probs = state.log_prob.reshape(batch, num_decodes)
    order = jnp.argsort(log_probs, axis=-1)
    sequences = state.sequences[:, 1 : length + 1].reshape(batch, num_decodes, length)
    return jnp.take_along_axis(sequences, order[..., None], axis=1), jnp.take_along_axis(log_probs, order, axis=1)
