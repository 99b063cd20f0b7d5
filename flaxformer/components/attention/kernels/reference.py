"""Attention as the textbook has it: the definition that every other kernel must agree with."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.blocks import Place
from flaxformer.components.attention.kernels import dropout, request
from flaxformer.types import Array


def attend_reference(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    return_residuals: bool = False,
    **options,
) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """Attends with the whole square of scores in memory.

        logits  = cap(scale * query · key) + bias, -inf where the mask hides
        weights = exp(logits) / (sum over keys of exp(logits) + exp(sink)), after dropout
        output  = weights · value

    Args:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K: query head n reads key head n // (N // K).
      value: `[B S K V]`.
      return_residuals: return also the logarithm of the denominator, `[B N T]`, -inf in rows that see nothing.
      **options: `mask`, `bias`, `scale`, `softcap`, `sinks`, `dropout_rate`, `dropout_rng`, `broadcast_dropout` and
        `precision`, see `flaxformer.components.attention.backends.attend`.

    Returns:
      `[B T N V]` in the query's dtype. A row that may see nothing is zero, and so are its gradients.
    """
    asked = request.check(query, key, value, **options)
    weights, log_sum_exp = _softmax(_logits(asked), asked.sinks)  # [B N T S], [B N T]
    output = _apply(asked, _drop(asked, weights)).astype(query.dtype)
    return (output, log_sum_exp) if return_residuals else output


@jax.custom_jvp
def _softmax(
    logits: Float[Array, "B N T S"], sinks: Float[Array, " N"] | None
) -> tuple[Float[Array, "B N T S"], Float[Array, "B N T"]]:
    """Weights and log-sum-exp; zero and -inf in rows that see nothing."""
    highest = jnp.max(logits, axis=-1, initial=jnp.finfo(logits.dtype).min)  # finite also where nothing is seen
    if sinks is not None:
        highest = jnp.maximum(highest, sinks.astype(logits.dtype)[:, None])
    weights = jnp.exp(logits - highest[..., None])
    total = weights.sum(-1)
    if sinks is not None:
        total += jnp.exp(sinks.astype(logits.dtype)[:, None] - highest)
    blind = total == 0
    total = jnp.where(blind, 1, total)
    return weights / total[..., None], jnp.where(blind, -jnp.inf, highest + jnp.log(total))


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    """The derivative from the weights alone, so that nothing else of the square is kept for the backward pass."""
    weights, log_sum_exp = _softmax(*primals)
    moved = (weights * tangents[0]).sum(-1)
    if primals[1] is not None:
        finite = jnp.where(jnp.isneginf(log_sum_exp), 0, log_sum_exp)
        sink_weights = jnp.exp(primals[1].astype(weights.dtype)[:, None] - finite)
        moved += sink_weights * tangents[1].astype(weights.dtype)[:, None]
    return (weights, log_sum_exp), (weights * (tangents[0] - moved[..., None]), moved)


def _logits(asked: request.Request) -> Float[Array, "B N T S"]:
    query, key = asked.query, asked.key
    (batch, length, num_heads, width), (_, keys, kv_heads, _) = query.shape, key.shape
    # The heads of a group become rows of one product: transposing queries is cheaper than transposing scores.
    groups = num_heads // kv_heads
    rows = query.reshape(batch, length, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    logits = jnp.einsum(
        "bkrh,bskh->bkrs",
        rows.reshape(batch, kv_heads, groups * length, width),
        key,
        precision=asked.precision,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    ).reshape(batch, num_heads, length, keys)
    logits *= asked.scale
    if asked.softcap is not None:
        logits = asked.softcap * jnp.tanh(logits / asked.softcap)
    if asked.bias is not None:
        scaled = query.swapaxes(1, 2).astype(logits.dtype) * asked.scale if asked.bias.needs_query else None
        logits += asked.bias.dense(length, keys, scaled)
    if asked.mask is not None:
        logits = jnp.where(asked.mask.dense(length, keys), logits, -jnp.inf)
    return logits


def _drop(asked: request.Request, weights: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    if not asked.dropout_rate:
        return weights
    batch, num_heads, length, keys = weights.shape
    place = Place(0, batch, 0, num_heads, 0, length, 0, keys)
    seeds = cast(Array, asked.seeds)
    kept = dropout.kept(seeds, asked.dropout_rate, place, num_heads, length, asked.broadcast_dropout)
    return jnp.where(kept, weights / (1 - asked.dropout_rate), 0)


def _apply(asked: request.Request, weights: Float[Array, "B N T S"]) -> Float[Array, "B T N V"]:
    value = asked.value
    (batch, num_heads, length, keys), (_, _, kv_heads, width) = weights.shape, value.shape
    rows = jnp.einsum(
        "bkrs,bskv->bkrv",
        weights.reshape(batch, kv_heads, num_heads // kv_heads * length, keys).astype(value.dtype),
        value,
        precision=asked.precision,
        preferred_element_type=weights.dtype,
    )
    return rows.reshape(batch, num_heads, length, width).swapaxes(1, 2)
