"""Attention functions for the layers' `attention_fn` that never hold the square of scores.

They take the arguments of `flaxformer.components.attention.dense_attention.dot_product_attention`, and run the
blockwise kernel (`flaxformer.components.attention.kernels.blockwise`). Two things differ:

* Dropout is that of Rabe & Staats: it subtracts a large number from the logits of dropped keys, so that the weights
  which survive still sum to one instead of being scaled up.
* `causal_mask` hides later keys without a mask array.

Source: Rabe & Staats 2021, "Self-attention does not need O(n²) memory", https://arxiv.org/abs/2112.05682
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.kernels import plan
from flaxformer.components.attention.kernels.biases import ArrayBias, Bias
from flaxformer.components.attention.kernels.blind import attend_evenly_when_blind
from flaxformer.components.attention.kernels.blockwise import attend_blockwise
from flaxformer.components.attention.masks import Causal, Mask, combine
from flaxformer.types import Array, DType, Precision, PRNGKey

_DROPPED_LOGIT = -1e6  # as google/flaxformer has it: far below any logit, far above masked ones


def dot_product_attention_multihead(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S N H"],
    value: Float[Array, "*B S N V"],
    bias: Array | Bias | None = None,
    *,
    mask: Mask | Array | None = None,
    **options: Any,
) -> Float[Array, "*B T N V"]:
    """`dot_product_attention_queries_per_head` with a key head for every query head."""
    bias = bias if bias is None or isinstance(bias, Bias) else jnp.expand_dims(_at_least(bias, 3), -3)
    attended = dot_product_attention_queries_per_head(query[..., :, None, :], key, value, bias, mask=mask, **options)
    return attended[..., 0, :]


def dot_product_attention_multiquery(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S H"],
    value: Float[Array, "*B S V"],
    bias: Array | Bias | None = None,
    *,
    mask: Mask | Array | None = None,
    **options: Any,
) -> Float[Array, "*B T N V"]:
    """`dot_product_attention_queries_per_head` with one key head, which has no axis."""
    bias = bias if bias is None or isinstance(bias, Bias) else jnp.expand_dims(_at_least(bias, 3), -4)
    attended = dot_product_attention_queries_per_head(
        query[..., None, :, :], key[..., None, :], value[..., None, :], bias, mask=mask, **options
    )
    return attended[..., 0, :, :]


def dot_product_attention_queries_per_head(
    query: Float[Array, "*B T K G H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Array | Bias | None = None,
    broadcast_dropout: bool = True,
    rescale_logits: bool = False,
    dropout_rng: PRNGKey | None = None,
    dropout_rate: float = 0.0,
    enable_dropout: bool = True,
    dtype: DType = jnp.float32,
    precision: Precision = None,
    use_extra_logit: bool = False,
    float32_logits: bool = False,
    causal_mask: bool = False,
    query_chunk_size: int = 1024,
    key_chunk_size: int = 2048,
    mask: Mask | Array | None = None,
) -> Float[Array, "*B T K G V"]:
    """Attention in which G query heads share each of K key heads.

    Args:
      query: `[..., T, K, G, H]`.
      key: `[..., S, K, H]`.
      value: `[..., S, K, V]`.
      bias: broadcastable to `[..., K, G, T, S]`, or lazy, with K·G heads.
      broadcast_dropout: drop the same keys for all queries.
      rescale_logits: divide the query by √H.
      dropout_rng: key of the dropout mask.
      dropout_rate: share of keys to drop.
      enable_dropout: False switches dropout off.
      dtype: accepted for the sake of the common interface; sums are kept in float32 at least.
      precision: of both products.
      use_extra_logit: the softmax may put weight on one extra logit of 0.
      float32_logits: compute logits from float32 queries and keys.
      causal_mask: hide keys after the query.
      query_chunk_size: queries per block, at most; longer lengths must be a multiple of it.
      key_chunk_size: keys per block, likewise.
      mask: who may see whom, symbolic or an array broadcastable to `[B N T S]`. A row that sees nothing attends evenly.

    Returns:
      `[..., T, K, G, V]`.
    """
    *batch, length, kv_heads, groups, width = query.shape
    key_length, num_heads = key.shape[-3], kv_heads * groups
    _check_chunk("query", length, query_chunk_size)
    _check_chunk("key", key_length, key_chunk_size)
    if not isinstance(bias, Bias):
        bias = _flat_bias(bias, batch, (kv_heads, groups, length, key_length))
    if enable_dropout and dropout_rate > 0.0:
        shape = (_size(batch), num_heads, 1 if broadcast_dropout else length, key_length)
        dropped = ArrayBias(jnp.where(_bernoulli(dropout_rng, dropout_rate, shape), _DROPPED_LOGIT, 0.0))
        bias = dropped if bias is None else bias + dropped
    out_dtype = value.dtype
    if float32_logits:
        query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    value = value.reshape(-1, *value.shape[-3:])
    attended, log_sum_exp = attend_blockwise(
        query.reshape(-1, length, num_heads, width),
        key.reshape(-1, *key.shape[-3:]),
        value,
        mask=combine(mask, Causal() if causal_mask else None),
        bias=bias,
        scale=width**-0.5 if rescale_logits else 1.0,
        sinks=jnp.zeros(num_heads) if use_extra_logit else None,
        precision=precision,
        query_block=_block(length, query_chunk_size),
        key_block=_block(key_length, key_chunk_size),
        return_residuals=True,
    )
    if mask is not None:
        attended = attend_evenly_when_blind(attended, log_sum_exp, value)
    return attended.reshape(*batch, length, kv_heads, groups, value.shape[-1]).astype(out_dtype)


for _function in (
    dot_product_attention_multihead,
    dot_product_attention_multiquery,
    dot_product_attention_queries_per_head,
):
    _function.takes_lazy_bias = True  # pyright: ignore[reportFunctionMemberAccess]  (layers read it)


def _causal_bias(
    q_len: int, k_len: int, offset: int | None = None, mask_to_bias_factor: float = 1e6
) -> Float[Array, "T S"]:
    """A bias that hides later keys; `offset` says how far behind the first key the first query stands."""
    hidden = ~Causal().block(offset or 0, q_len, 0, k_len)[0, 0]
    return hidden.astype(jnp.float32) * -mask_to_bias_factor


def _check_chunk(name: str, length: int, chunk: int) -> None:
    if length > chunk and length % chunk:
        raise ValueError(
            f"{name}_chunk_size is {chunk} and the {name} length {length}; expected a length that is a multiple of the "
            "chunk, or shorter. Pad the sequence or change the chunk size."
        )


def _block(length: int, chunk: int) -> int | None:
    """The chunk size, or the kernel's own choice where that is smaller."""
    return min(length, chunk) if chunk < min(plan.block_size()) else None


def _flat_bias(bias: Array | None, batch: list[int], scores: tuple[int, int, int, int]) -> ArrayBias | None:
    """A bias `[#B... #K #G #T #S]` as `[#B #N #T #S]`."""
    if bias is None:
        return None
    full = (*batch, *scores)
    bias = _at_least(bias, len(full))
    if bias.ndim != len(full) or any(size not in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
        raise ValueError(f"bias has shape {bias.shape}; expected {full} or 1 in places, as in [B... K G T S].")
    kv_heads, groups, *lengths = bias.shape[-4:]
    if (kv_heads, groups) != (1, 1):
        bias = jnp.broadcast_to(bias, (*bias.shape[:-4], *scores[:2], *lengths))
    if any(size > 1 for size in bias.shape[: len(batch)]):
        bias = jnp.broadcast_to(bias, (*batch, *bias.shape[-4:]))
    heads = bias.shape[-4] * bias.shape[-3]
    return ArrayBias(bias.reshape(_size(bias.shape[:-4]), heads, *lengths))


def _at_least(x: Array, ndim: int) -> Array:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _size(shape: Any) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _bernoulli(rng: PRNGKey | None, rate: float, shape: tuple[int, ...]) -> Array:
    if rng is None:
        raise ValueError(
            f"dropout_rate is {rate} but dropout_rng is None; expected a random key. "
            "Pass dropout_rng, or enable_dropout=False."
        )
    return jax.random.bernoulli(rng, rate, shape)
