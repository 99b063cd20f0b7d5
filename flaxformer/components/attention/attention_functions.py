"""Dot-product attention as pure functions: the definition that every faster kernel must agree with.

The key and value heads K may be fewer than the query heads N (grouped-query attention, Ainslie et al. 2023,
arXiv:2305.13245); K = 1 is multi-query attention (Shazeer 2019, arXiv:1911.02150). All three are one grouped product:
query head n reads key head n // (N // K).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Float

from flaxformer.components.attention.masks import MASKED_LOGIT, Mask, as_mask
from flaxformer.errors import ShapeError
from flaxformer.types import Array, DType, Precision, PRNGKey


def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K Hv"],
    bias: Array | None = None,
    broadcast_dropout: bool = True,
    rescale_logits: bool = False,
    rescale_weights: bool = False,
    dropout_rng: PRNGKey | None = None,
    dropout_rate: float = 0.0,
    enable_dropout: bool = True,
    dtype: DType = jnp.float32,
    precision: Precision = None,
    use_extra_logit: bool = False,
    float32_logits: bool = False,
    mask: Mask | Array | None = None,
) -> Float[Array, "*B T N Hv"]:
    """`softmax(query · key + bias) · value`, zero or more batch axes.

    Args:
      query: `[..., T, N, H]`. Not scaled unless `rescale_logits`: T5 folds 1/√H into its initialisation.
      key: `[..., S, K, H]` with N a multiple of K.
      value: `[..., S, K, Hv]`.
      bias: added to the logits, broadcastable to `[..., N, T, S]`.
      broadcast_dropout: one dropout mask for all query positions.
      rescale_logits: divide the query by √H.
      rescale_weights: divide the logits by √H before the bias is added; excludes `rescale_logits`.
      dropout_rng: key of the dropout mask.
      dropout_rate: share of attention weights to drop.
      enable_dropout: False switches dropout off.
      dtype: type of the attention weights.
      precision: of both products.
      use_extra_logit: let the softmax put weight on one extra logit of 0, that is on nothing.
      float32_logits: compute logits and softmax in float32.
      mask: who may see whom, symbolic or an array broadcastable to `[..., N, T, S]` (above 0 means may see).
        A row that may see nothing attends uniformly, or to nothing with the extra logit.

    Returns:
      `[..., T, N, Hv]`.
    """
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value has shape {value.shape} and key {key.shape}; expected them to agree in all but the last axis."
        )
    logits = scaled_logits(query, key, rescale_logits, rescale_weights, dtype, precision, float32_logits)
    logits = add_bias_and_mask(logits, bias, mask)
    drop = functools.partial(drop_weights, rng=dropout_rng, rate=dropout_rate, broadcast=broadcast_dropout)
    dropping = enable_dropout and dropout_rate > 0.0
    if not jnp.dtype(dtype) == logits.dtype == jnp.float32:  # rounded as published half-precision runs rounded it
        weights = softmax(logits, use_extra_logit).astype(dtype)
        weights = drop(weights) if dropping else weights
        return apply_dot_product_attention_weights_to_values(weights, value, precision)
    # Divided by the softmax's sum after the product with the values, where there is less to divide: XLA on CPU would
    # compute the exponentials twice, and a forward pass of T5 1.1 small took 1.28 times as long.
    unnormalised, total = _exponentials(logits, use_extra_logit)
    unnormalised = drop(unnormalised) if dropping else unnormalised
    x = apply_dot_product_attention_weights_to_values(unnormalised, value, precision)
    return x / rearrange(total, "... n t 1 -> ... t n 1")


def dot_product_attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    bias: Array | None = None,
    broadcast_dropout: bool = True,
    rescale_logits: bool = False,
    rescale_weights: bool = False,
    dropout_rng: PRNGKey | None = None,
    dropout_rate: float = 0.0,
    enable_dropout: bool = True,
    dtype: DType = jnp.float32,
    precision: Precision = None,
    use_extra_logit: bool = False,
    float32_logits: bool = False,
    mask: Mask | Array | None = None,
) -> Float[Array, "*B N T S"]:
    """The attention weights of `dot_product_attention`, after dropout; the arguments are the same."""
    logits = scaled_logits(query, key, rescale_logits, rescale_weights, dtype, precision, float32_logits)
    logits = add_bias_and_mask(logits, bias, mask)
    weights = softmax(logits, use_extra_logit).astype(dtype)
    if enable_dropout and dropout_rate > 0.0:
        weights = drop_weights(weights, dropout_rng, dropout_rate, broadcast_dropout)
    return weights


def apply_dot_product_attention_weights_to_values(
    attention_weights: Float[Array, "*B N T S"], value: Float[Array, "*B S K H"], precision: Precision = None
) -> Float[Array, "*B T N H"]:
    """The average of the values under the weights, `[..., N, T, S]` x `[..., S, K, H]` -> `[..., T, N, H]`."""
    heads = value.shape[-2]
    if attention_weights.shape[-3] == heads:
        return jnp.einsum("...nts,...snh->...tnh", attention_weights, value, precision=precision)
    grouped = rearrange(attention_weights, "... (k g) t s -> ... k g t s", k=heads)
    x = jnp.einsum("...kgts,...skh->...tkgh", grouped, value, precision=precision)
    return rearrange(x, "... k g h -> ... (k g) h")


def dot_product_attention_multiquery(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S H"],
    value: Float[Array, "*B S Hv"],
    bias: Array | None = None,
    broadcast_dropout: bool = True,
    rescale_logits: bool = False,
    dropout_rng: PRNGKey | None = None,
    dropout_rate: float = 0.0,
    enable_dropout: bool = True,
    dtype: DType = jnp.float32,
    precision: Precision = None,
    use_extra_logit: bool = False,
    float32_logits: bool = False,
    mask: Mask | Array | None = None,
) -> Float[Array, "*B T N Hv"]:
    """`dot_product_attention` with one key and value head and no axis for it."""
    return dot_product_attention(
        query,
        key[..., None, :],
        value[..., None, :],
        bias,
        broadcast_dropout=broadcast_dropout,
        rescale_logits=rescale_logits,
        dropout_rng=dropout_rng,
        dropout_rate=dropout_rate,
        enable_dropout=enable_dropout,
        dtype=dtype,
        precision=precision,
        use_extra_logit=use_extra_logit,
        float32_logits=float32_logits,
        mask=mask,
    )


def _check_heads(query: Array, key: Array) -> None:
    if query.ndim != key.ndim or query.ndim < 3:
        raise ShapeError(
            f"query has shape {query.shape} and key {key.shape}; expected equal ranks of 3 or more, "
            "[..., length, heads, head_dim]."
        )
    if query.shape[:-3] != key.shape[:-3]:
        raise ShapeError(f"query has shape {query.shape} and key {key.shape}; expected equal batch axes.")
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(f"query has shape {query.shape} and key {key.shape}; expected the same last axis (head_dim).")
    if query.shape[-2] % key.shape[-2]:
        raise ShapeError(
            f"query has {query.shape[-2]} heads and key {key.shape[-2]}; expected a multiple of the key's heads."
        )


def scaled_logits(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    rescale_logits: bool = False,
    rescale_weights: bool = False,
    dtype: DType = jnp.float32,
    precision: Precision = None,
    float32_logits: bool = False,
) -> Float[Array, "*B N T S"]:
    """`query · key`, scaled; the arguments are those of `dot_product_attention`."""
    _check_heads(query, key)
    if rescale_logits and rescale_weights:
        raise ValueError(
            "rescale_logits and rescale_weights are both True; expected at most one, since each divides by √head_dim."
        )
    root = jnp.sqrt(jnp.float32(query.shape[-1])).astype(dtype)
    if rescale_logits:
        query = query / root
    if float32_logits:
        query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = _logits(query, key, precision)
    return logits / root if rescale_weights else logits


def _logits(query: Array, key: Array, precision: Precision) -> Float[Array, "*B N T S"]:
    heads, num_heads = key.shape[-2], query.shape[-2]
    if heads == num_heads:
        return jnp.einsum("...tnh,...snh->...nts", query, key, precision=precision)
    grouped = rearrange(query, "... (k g) h -> ... k g h", k=heads)
    x = jnp.einsum("...tkgh,...skh->...kgts", grouped, key, precision=precision)
    return rearrange(x, "... k g t s -> ... (k g) t s")


def drop_weights(weights: Array, rng: PRNGKey | None, rate: float, broadcast: bool) -> Array:
    """Weights of which a share `rate` is zero and the others are scaled up; alike for all queries if broadcast.

    Raises:
      ValueError: without a random key.
    """
    if rng is None:
        raise ValueError(
            f"attention dropout of rate {rate} got no dropout_rng; expected a key. "
            "Pass rngs={'dropout': key}, or enable_dropout=False."
        )
    keep_probability = 1.0 - rate
    shape = (*weights.shape[:-2], 1, weights.shape[-1]) if broadcast else weights.shape
    keep = jax.random.bernoulli(rng, keep_probability, shape)
    return weights * (keep.astype(weights.dtype) / jnp.asarray(keep_probability, weights.dtype))


def add_bias_and_mask(
    logits: Float[Array, "*B N T S"], bias: Array | None, mask: Mask | Array | None
) -> Float[Array, "*B N T S"]:
    """The logits as the softmax takes them.

    Bias and mask become one array first: it is the same in all layers of a stack, and XLA then makes it once.
    """
    bias = None if bias is None else bias.astype(logits.dtype)
    if mask is None:
        return logits if bias is None else logits + bias
    visible = as_mask(mask).dense(*logits.shape[-2:])
    hidden = max(MASKED_LOGIT, float(jnp.finfo(logits.dtype).min) / 2)  # finite in float16 too
    shown = jnp.zeros((), logits.dtype) if bias is None else bias
    return logits + jnp.where(visible, shown, jnp.asarray(hidden, logits.dtype))


def softmax(logits: Array, use_extra_logit: bool = False) -> Array:
    """Over the last axis, and over one more logit of 0 if asked to."""
    return _softmax_with_extra_logit(logits) if use_extra_logit else jax.nn.softmax(logits)


def _exponentials(x: Array, extra_logit: bool, axis: int = -1) -> tuple[Array, Array]:
    """Numerators and denominator of the softmax; the extra logit of 0 counts in the denominator only."""
    highest = lax.stop_gradient(x.max(axis=axis, keepdims=True))
    highest = jnp.maximum(highest, 0) if extra_logit else highest
    unnormalised = jnp.exp(x - highest)
    total = unnormalised.sum(axis=axis, keepdims=True)
    return unnormalised, total + jnp.exp(-highest) if extra_logit else total


def _softmax_with_extra_logit(x: Array, axis: int = -1) -> Array:
    """Softmax over `x` and one extra logit of 0, whose own weight is not returned."""
    unnormalised, total = _exponentials(x, True, axis)
    return unnormalised / total
