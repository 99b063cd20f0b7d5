"""What an attention layer says about pairs of tokens: masks and biases at the positions of one call.

The caller's mask and bias, and the layer's own (`reach`, `positions`), are brought to the places where this call's
queries and keys stand, and joined. While tokens stand at their row offsets, nothing is bound to positions: kernels then
know the picture while tracing, and leave out what it hides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float, Int

from flaxformer.components.attention.caches import Place
from flaxformer.components.attention.kernels.biases import Bias, as_bias
from flaxformer.components.attention.masks import MASKED_LOGIT, Mask
from flaxformer.types import Array, DType


def mask_at(mask: Mask | None, place: Place) -> Mask | None:
    """The caller's mask at the positions of this call, without the slots that hold nothing or are another branch's."""
    return place.limit(own_mask_at(mask, place))


def own_mask_at(mask: Mask | None, place: Place) -> Mask | None:
    """A mask at the positions of this call."""
    return mask if mask is None or place.counted else mask.at(place.q_positions, place.k_positions)


def bias_at(bias: Array | Bias | None, place: Place) -> Array | Bias | None:
    """The caller's bias at the positions of this call; an array was made for them."""
    return bias.at(place.q_positions, place.k_positions) if isinstance(bias, Bias) and not place.counted else bias


def bias_of(scheme: Any, query: Array, key: Array, place: Place) -> Array | Bias | None:
    """What a position scheme adds to the scores: from positions alone, and from queries and keys.

    Args:
      scheme: may have `bias(q_positions, k_positions)` and `scores_bias(query, key, q_positions, k_positions)`, each
        of which may answer None.
      query: `[B T N H]`.
      key: `[B S K H]`.
      place: where they stand.
    """
    positions = place.q_positions, place.k_positions
    bias = scheme.bias(*positions) if hasattr(scheme, "bias") else None
    if hasattr(scheme, "scores_bias"):
        bias = add(bias, scheme.scores_bias(query, key, *positions))
    if isinstance(bias, Bias) and place.counted:
        return bias.at(None, None)  # row offsets, which kernels know while tracing
    return bias


def add(first: Array | Bias | None, second: Array | Bias | None) -> Array | Bias | None:
    """The sum of two biases, lazy if one is."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Bias) or isinstance(second, Bias):
        return as_bias(first) + as_bias(second)
    return first + second


def as_array(bias: Array | Bias | None, query: Array, key: Array, rescaled: bool) -> Array | None:
    """A lazy bias as `[#B #N T S]`; anything else as it is.

    Args:
      bias: may read the queries.
      query: `[B T N H]`.
      key: `[B S K H]`.
      rescaled: the layer divides its logits by √H.
    """
    if not isinstance(bias, Bias):
        return bias
    if not bias.needs_query:
        return bias.dense(query.shape[-3], key.shape[-3])
    scale = query.shape[-1] ** -0.5 if rescaled else 1.0
    return bias.dense(query.shape[-3], key.shape[-3], query.swapaxes(-3, -2) * scale)


def as_one_bias(mask: Mask | None, bias: Array | None, query: Array, key: Array, dtype: DType) -> Array | None:
    """Mask and bias as one bias, for attention functions that know no mask."""
    if mask is None:
        return bias
    hidden = jnp.asarray(MASKED_LOGIT, dtype)
    masking = jnp.where(mask.dense(query.shape[-3], key.shape[-3]), jnp.zeros((), dtype), hidden)
    return masking if bias is None else masking + bias


def takes_lazy_bias(attention_fn: Callable[..., Any]) -> bool:
    """Whether a function or object takes a `kernels.biases.Bias` as it is: it says so by `takes_lazy_bias = True`."""
    if getattr(attention_fn, "takes_lazy_bias", False):
        return True
    partial = isinstance(attention_fn, functools.partial)
    inner = attention_fn.func if partial else getattr(attention_fn, "__wrapped__", None)
    return inner is not None and takes_lazy_bias(inner)


def fold_beams(
    query: Float[Array, "R T N H"], positions: Int[Array, "#R T"], batch: int
) -> tuple[Float[Array, "B RT N H"], Int[Array, "#B RT"]]:
    """Lets R = B·beams rows of queries attend to B rows of keys: the beams of an item become query positions.

    Raises:
      ValueError: when R is not a multiple of `batch`.
    """
    rows = query.shape[0]
    if rows % batch:
        raise ValueError(
            f"{rows} rows of queries meet {batch} rows of encoder keys; expected a multiple, one block of rows "
            "per encoded sequence."
        )
    if positions.shape[0] == 1:
        positions = jnp.tile(positions, (1, rows // batch))
    else:
        positions = rearrange(positions, "(b r) t -> b (r t)", b=batch)
    return rearrange(query, "(b r) t n h -> b (r t) n h", b=batch), positions
