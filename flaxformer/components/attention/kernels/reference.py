"""Attention as the textbook has it: the definition that every other kernel must agree with."""

from __future__ import annotations

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
    logits = _logits(asked)  # [B N T S]
    highest = jnp.max(logits, axis=-1, initial=jnp.finfo(logits.dtype).min)  # finite also where nothing is seen
    if asked.sinks is not None:
        sinks = asked.sinks.astype(logits.dtype)[:, None]
        highest = jnp.maximum(highest, sinks)
    highest = jax.lax.stop_gradient(highest)
    weights = jnp.exp(logits - highest[..., None])
    total = weights.sum(-1)
    if asked.sinks is not None:
        total += jnp.exp(sinks - highest)
    blind = total == 0
    log_sum_exp = jnp.where(blind, -jnp.inf, highest + jnp.log(jnp.where(blind, 1, total)))
    weights = _drop(asked, weights)
    output = _apply(asked, weights) / jnp.where(blind, 1, total).swapaxes(1, 2)[..., None]
    output = output.astype(query.dtype)
    return (output, log_sum_exp) if return_residuals else output


def _logits(asked: request.Request) -> Float[Array, "B N T S"]:
    query, key = asked.query, asked.key
    batch, length, num_heads, width = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    groups = num_heads // key.shape[2]
    logits = jnp.einsum(
        "btkgh,bskh->bkgts",
        query.reshape(batch, length, key.shape[2], groups, width),
        key,
        precision=asked.precision,
        preferred_element_type=wide,
    ).reshape(batch, num_heads, length, key.shape[1])
    logits *= asked.scale
    if asked.softcap is not None:
        logits = asked.softcap * jnp.tanh(logits / asked.softcap)
    if asked.bias is not None:
        logits += asked.bias.dense(length, key.shape[1])
    if asked.mask is not None:
        logits = jnp.where(asked.mask.dense(length, key.shape[1]), logits, -jnp.inf)
    return logits


def _drop(asked: request.Request, weights: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
    if not asked.dropout_rate:
        return weights
    batch, num_heads, length, keys = weights.shape
    place = Place(0, batch, 0, num_heads, 0, length, 0, keys)
    kept = dropout.kept(asked.seeds, asked.dropout_rate, place, num_heads, length, asked.broadcast_dropout)
    return jnp.where(kept, weights / (1 - asked.dropout_rate), 0)


def _apply(asked: request.Request, weights: Float[Array, "B N T S"]) -> Float[Array, "B T N V"]:
    value = asked.value
    batch, num_heads, length, keys = weights.shape
    grouped = weights.reshape(batch, value.shape[2], num_heads // value.shape[2], length, keys)
    output = jnp.einsum(
        "bkgts,bskh->btkgh",
        grouped.astype(value.dtype),
        value,
        precision=asked.precision,
        preferred_element_type=weights.dtype,
    )
    return output.reshape(batch, length, num_heads, value.shape[-1])
