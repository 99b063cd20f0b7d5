"""Which tokens a model's layers may see: masks from tokens, validity, segments and prefixes."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Num

from flaxformer.components.attention.masks import Causal, Mask, Padding, Segments, prefix_lm
from flaxformer.components.attention.reach import GlobalTokens
from flaxformer.step import Step
from flaxformer.types import Array


def real_tokens(tokens: Num[Array, "B T"], padding_id: int | None = 0) -> Bool[Array, "B T"]:
    """Which tokens are not padding; all of them when `padding_id` is None."""
    if padding_id is None:
        return jnp.ones_like(tokens, bool)
    return tokens > 0 if padding_id == 0 else tokens != padding_id


def decoder_mask(
    targets: Num[Array, "B T"],
    causal_attention: Array | None = None,
    segment_ids: Array | None = None,
    valid: Array | None = None,
) -> Mask:
    """Causal, no padding, within a segment; positions flagged in `causal_attention` also see each other.

    Padding is where `valid` is False; without it, where targets are 0.
    """
    reach = Causal()
    if causal_attention is not None:
        flags = causal_attention > 0
        reach = prefix_lm(flags, flags)
    valid = targets > 0 if valid is None else valid
    reach = reach & Padding(valid, valid)
    return reach if segment_ids is None else reach & Segments(segment_ids, segment_ids)


def encoder_mask(
    tokens: Num[Array, "B T"],
    segment_ids: Array | None = None,
    valid: Array | None = None,
    global_tokens: Array | None = None,
) -> Mask:
    """No padding, within a segment. Padding is where `valid` is False; without it, where tokens are 0.

    What is flagged in `global_tokens` is said to layers that see far only where they are told to.
    """
    valid = tokens > 0 if valid is None else valid
    mask = Padding(valid, valid)
    if global_tokens is not None:
        mask = mask & GlobalTokens(global_tokens > 0)
    return mask if segment_ids is None else mask & Segments(segment_ids, segment_ids)


def known_tokens(valid: Array | None, tokens: Array | None, padding_id: int | None) -> Array | None:
    """`valid` as bool, or what follows from a padding id other than 0; None leaves it to the ids (0 is padding)."""
    if valid is not None:
        return valid > 0
    return None if padding_id == 0 or tokens is None else real_tokens(tokens, padding_id)


def same_segment(query_ids: Array | None, key_ids: Array | None) -> Mask | None:
    return None if query_ids is None or key_ids is None else Segments(query_ids, key_ids)


def step_mask(step: Step, causal_attention: Array | None = None) -> Mask | None:
    """The mask of a driven cache: slots that hold nothing are hidden by the attention layer itself."""
    if step.visible is not None or (step.slots().positions.shape[-1] == 1 and not step.fresh):
        return None  # everything cached lies before the one query, or the branches know what they may see
    if causal_attention is None:
        return Causal()
    if not step.fresh:
        raise ValueError("decoder_causal_attention was given after the prompt; expected it with the first step only.")
    flags = causal_attention > 0
    return prefix_lm(flags, flags)
