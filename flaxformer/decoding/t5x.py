"""T5X's decoding functions under one roof, for code and gin files written against `t5x.decoding`.

Both searches take a step function and a cache and know no model. `flaxformer.decoding.generate` does the same work
for a model, with fewer conventions.
"""

import jax.numpy as jnp

from flaxformer.decoding.logits import NEG_INF, top_k_mask, top_p_mask
from flaxformer.decoding.scores import brevity_penalty
from flaxformer.decoding.strategies.sample import MIN_TEMPERATURE
from flaxformer.decoding.t5x_beam import DecodingState, beam_search
from flaxformer.decoding.t5x_caches import (
    add_beam_dim,
    cache_gather_beams,
    cache_map,
    flat_batch_beam_expand,
    flatten_beam_dim,
    gather_beams,
    gather_topk_beams,
    left_align_prompts,
    remove_prefix,
    right_align_prompts,
    top_k_two_stage,
    unflatten_beam_dim,
)
from flaxformer.decoding.t5x_sampling import SamplingLoopState, temperature_sample
from flaxformer.types import Array

__all__ = [
    "MIN_TEMPERATURE",
    "NEG_INF",
    "DecodingState",
    "SamplingLoopState",
    "add_beam_dim",
    "beam_search",
    "brevity_penalty",
    "cache_gather_beams",
    "cache_map",
    "flat_batch_beam_expand",
    "flatten_beam_dim",
    "gather_beams",
    "gather_topk_beams",
    "left_align_prompts",
    "remove_prefix",
    "right_align_prompts",
    "temperature_sample",
    "top_k_two_stage",
    "topk_mask",
    "topp_mask",
    "unflatten_beam_dim",
]


def topk_mask(x: Array, k: int, replace_val: float) -> Array:
    """`x` with everything below its k-th largest entry replaced."""
    return jnp.where(top_k_mask(x, k), x, replace_val)


def topp_mask(logits: Array, p: float, replace_val: float) -> Array:
    """`logits` with everything outside the smallest most probable set of total `p` replaced."""
    return jnp.where(top_p_mask(logits, p), logits, replace_val)
