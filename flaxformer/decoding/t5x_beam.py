"""T5X's `beam_search`: its signature and conventions around `BeamSearch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF, best_continuations
from flaxformer.decoding.strategies.base import Request
from flaxformer.decoding.strategies.beam import BeamSearch, BeamState
from flaxformer.decoding.t5x_caches import (
    cache_map,
    flat_batch_beam_expand,
    left_align_prompts,
    right_align_prompts,
    take_rows,
)
from flaxformer.types import Array


@flax.struct.dataclass
class DecodingState:
    """What T5X's step functions receive.

    Attributes:
      cur_index: position of the token: `[R]` when sampling, a scalar in beam search.
      sequences: the tokens so far, `[R L]`.
      cur_token: `[R 1]`.
      cache: the rows' cache.
    """

    cur_index: Array
    sequences: Int[Array, "R L"]
    cur_token: Int[Array, "R 1"]
    cache: Any


StepFunction = Callable[[DecodingState], tuple[Array, Any]]


class _EveryCandidate(BeamSearch):
    """T5X lets hypotheses that never started finish too; their scores stay far below any other."""

    def counts(self, candidates: Float[Array, "B C"]) -> Bool[Array, "B C"]:
        return jnp.ones_like(candidates, bool)


jax.tree_util.register_dataclass(
    _EveryCandidate, data_fields=["alpha", "min_log_prob", "rule"], meta_fields=["num_beams", "num_return"]
)


@flax.struct.dataclass
class _Loop:
    beams: BeamState
    sequences: Int[Array, "R M"]
    cache: Any


@dataclasses.dataclass(frozen=True)
class _Search:
    """One call of `beam_search`: the constants of its loop."""

    strategy: BeamSearch
    step_function: StepFunction
    cache_offset: int
    forced: Int[Array, "B L"] | None
    last_step: Array

    def go_on(self, loop: _Loop) -> Bool[Array, ""]:
        return ~self.strategy.done(loop.beams) & (loop.beams.step < self.last_step)

    def step(self, loop: _Loop) -> _Loop:
        time, beams = loop.beams.step, loop.beams
        token = jax.lax.dynamic_slice_in_dim(loop.sequences, time, 1, axis=1)  # [R 1]
        logits, cache = self.step_function(DecodingState(time, loop.sequences, token, loop.cache))
        logits = logits.astype(jnp.float32).reshape(*beams.live_scores.shape, -1)  # [B K V]
        chosen = best_continuations(logits, beams.live_scores, 2 * self.strategy.num_beams)
        tokens, parents, beams = self.strategy.extend(*self.force(chosen, time), beams)
        sequences = take_rows(loop.sequences, parents)
        return _Loop(
            beams=beams,
            sequences=jax.lax.dynamic_update_slice_in_dim(sequences, tokens[:, None], time + 1, axis=1),
            cache=cache_map(lambda x: take_rows(x, parents, self.cache_offset), cache),
        )

    def force(self, chosen: tuple[Array, Array, Array], time: Array) -> tuple[Array, Array, Array]:
        """The candidates, or the prompt's next token where there is one: it costs nothing, and one beam goes on."""
        if self.forced is None:
            return chosen
        scores, beams, tokens = chosen
        column = jnp.minimum(time + 1, self.forced.shape[1] - 1)
        given = jax.lax.dynamic_slice_in_dim(self.forced, column, 1, axis=1)  # [B 1]
        first = jnp.where(jnp.arange(scores.shape[1]) == 0, 0.0, NEG_INF)
        return jnp.where(given != 0, first, scores), beams, jnp.where(given != 0, given, tokens)


def beam_search(
    inputs: Int[Array, "B L"],
    cache: Any,
    tokens_to_logits: StepFunction,
    eos_id: int,
    num_decodes: int = 4,
    alpha: float = 0.6,
    max_decode_len: int | None = None,
    max_decode_step: int = -1,
    min_log_prob: float = NEG_INF,
    decode_rng: Array | None = None,
    cache_offset: int = 0,
    initial_index: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B K L"], Float[Array, "B K"]]:
    """Searches with K = `num_decodes` beams per item; results ascend, the best is last.

    Args:
      inputs: `[B L]`, nonzero entries are a forced prompt; column 0 is ignored.
      cache: cache of B items; it is expanded to B*K rows.
      tokens_to_logits: one step of the model, from a `DecodingState` to logits `[R V]` and the new cache.
      eos_id: the token that ends a hypothesis.
      num_decodes: beams per item.
      alpha: exponent of the brevity penalty.
      max_decode_len: tokens of a result; None takes the length of `inputs`.
      max_decode_step: stop after that many steps, if positive.
      min_log_prob: stop once all live hypotheses are below.
      decode_rng: not used.
      cache_offset: axes before the batch axis of cache leaves.
      initial_index: `[B]`, given when the cache already holds that many prompt tokens.

    Returns:
      Sequences `[B K max_decode_len]`, prompt included, and scores `[B K]`.
    """
    del decode_rng
    batch, length = inputs.shape
    steps = length if max_decode_len is None else max_decode_len
    prefilled = initial_index is not None
    prompt_lengths = initial_index if prefilled else jnp.zeros((batch,), jnp.int32)
    strategy = _EveryCandidate(num_beams=num_decodes, alpha=alpha, min_log_prob=min_log_prob)
    beams = strategy.start(
        Request(batch, steps, eos_id), prompt_lengths, longest=jnp.full((batch,), steps + 1, jnp.int32)
    )
    last_step = steps - jnp.min(prompt_lengths)
    search = _Search(
        strategy=strategy,
        step_function=tokens_to_logits,
        cache_offset=cache_offset,
        forced=None if prefilled else inputs,
        last_step=jnp.minimum(last_step, max_decode_step) if max_decode_step > 0 else last_step,
    )
    prompts = right_align_prompts(inputs)
    sequences = jnp.zeros((batch * num_decodes, steps + 1), jnp.int32)
    if prefilled:
        sequences = sequences.at[:, 0].set(jnp.repeat(prompts[:, -1], num_decodes))
    expanded = cache_map(
        lambda x: flat_batch_beam_expand(x, num_decodes, cache_offset), cache, apply_to_index=prefilled
    )
    final = jax.lax.while_loop(search.go_on, search.step, _Loop(beams, sequences, expanded))
    found = strategy.finish(final.beams)
    tokens, scores = found.tokens[:, ::-1], found.scores[:, ::-1]
    if prefilled:
        before = jnp.broadcast_to(prompts[:, None], (batch, num_decodes, length))
        tokens = left_align_prompts(jnp.concatenate([before, tokens], axis=-1))[..., :steps]
    return tokens, scores
