"""What is asked of an attention kernel, checked once for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases, dropout
from flaxformer.types import Array, Precision, PRNGKey


class Request(NamedTuple):
    """The arguments of a kernel after checking.

    Attributes:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K.
      value: `[B S K V]`.
      mask: symbolic.
      bias: lazy or an array.
      scale: what the products of queries and keys are multiplied by.
      softcap: logits are bent into (-softcap, softcap).
      sinks: `[N]`, one more logit per head whose weight goes to nothing.
      dropout_rate: share of weights to drop.
      seeds: `[2]` for dropout.
      broadcast_dropout: drop the same keys for all queries.
      precision: of the products.
    """

    query: Array
    key: Array
    value: Array
    mask: masks.Mask | None
    bias: biases.Bias | None
    scale: float
    softcap: float | None
    sinks: Array | None
    dropout_rate: float
    seeds: Array | None
    broadcast_dropout: bool
    precision: Precision


def check(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKey | None = None,
    broadcast_dropout: bool = False,
    precision: Precision = None,
) -> Request:
    """The request, or a ValueError that says what is wrong with it."""
    _check_arrays(query=query, key=key, value=value, mask=mask, bias=bias, sinks=sinks)
    _check_heads(query, key, value)
    _check_known(scale=scale, softcap=softcap, dropout_rate=dropout_rate)
    mask, bias = _check_mask(mask), biases.as_bias(bias)
    batch, query_length, num_heads, _ = query.shape
    for part in (mask, bias):
        if part is not None:
            part.validate(query_length, key.shape[1])
            _check_batch(part, batch)
    if bias is not None:
        bias.validate_width(query.shape[3])
    _check_head_axes(mask, bias, num_heads)
    if sinks is not None and sinks.shape != (num_heads,):
        raise ValueError(f"sinks have shape {sinks.shape}; expected ({num_heads},), one logit per query head.")
    if sinks is not None and not jnp.issubdtype(sinks.dtype, jnp.floating):
        raise ValueError(f"sinks have dtype {sinks.dtype}; expected floating point.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}; expected a positive number, or None for no cap.")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate is {dropout_rate}; expected 0 <= dropout_rate < 1.")
    if dropout_rate and dropout_rng is None:
        raise ValueError(
            f"dropout_rate is {dropout_rate} but dropout_rng is None; expected a random key. "
            "Pass dropout_rng, or dropout_rate=0 where nothing is to be dropped."
        )
    return Request(
        query=query,
        key=key,
        value=value,
        mask=mask,
        bias=bias,
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap=softcap,
        sinks=sinks,
        dropout_rate=dropout_rate,
        seeds=None if dropout_rng is None or not dropout_rate else dropout.seeds_from(dropout_rng),
        broadcast_dropout=broadcast_dropout,
        precision=precision,
    )


def _check_arrays(**arguments: Any) -> None:
    for name, x in arguments.items():
        if not (x is None or hasattr(x, "dtype") or isinstance(x, masks.Mask | biases.Bias)):
            raise ValueError(f"{name} is a {type(x).__name__}; expected an array. Pass jnp.asarray({name}).")


def _check_known(**numbers: Any) -> None:
    for name, number in numbers.items():
        if isinstance(number, Tracer):
            raise ValueError(
                f"{name} is traced; expected a number that is known while tracing: one of static_argnames, if it is an "
                "argument of jax.jit. Multiply the query by a learned scale and pass scale=1."
            )


def _check_heads(query: Array, key: Array, value: Array) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"got {shapes}; expected query [B T N H], key [B S K H] and value [B S K V], 4 axes each.")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1 for x in (query, key, value)):
        raise ValueError(
            f"got dtypes {query.dtype}, {key.dtype}, {value.dtype}; expected floating point of 16 bits or more."
        )
    if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"got {shapes}; expected query [B T N H], key [B S K H] and value [B S K V] with the same B, S, K and H."
        )
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"query has {query.shape[2]} heads and key {key.shape[2]}; expected a multiple of the key's. "
            "Repeat no keys: each serves a group of query heads."
        )


def _check_mask(mask: masks.Mask | Array | None) -> masks.Mask | None:
    if mask is None:
        return None
    if isinstance(mask, masks.Mask):
        is_array = lambda x: isinstance(x, masks.ArrayMask)  # noqa: E731
        return jax.tree.map(lambda x: _with_all_axes(x) if is_array(x) else x, mask, is_leaf=is_array)
    if mask.dtype != bool:
        raise ValueError(
            f"mask has dtype {mask.dtype}; expected bool, True = may see. Write mask > 0 for masks of numbers; "
            "additive masks belong into bias."
        )
    return _with_all_axes(masks.ArrayMask(mask))


def _with_all_axes(mask: masks.ArrayMask) -> masks.ArrayMask:
    """`[#T #S]` as `[1 1 #T #S]`; of a third axis nobody could tell whether it is that of rows or of heads."""
    array = mask.array
    if array.ndim > 4 or (array.ndim == 3 and array.shape[0] != 1):
        raise ValueError(
            f"mask has shape {array.shape}; expected [#B #N #T #S] or [#T #S]. Say which axes are rows and heads: "
            "mask[:, None] for [B T S], mask[None] for [N T S]."
        )
    return mask if array.ndim == 4 else masks.ArrayMask(array.reshape((1,) * (4 - array.ndim) + array.shape))


def _check_batch(part: masks.Mask | biases.Bias, batch: int) -> None:
    arrays = part.shape[:1] if isinstance(part, biases.Bias) else [x.shape[0] for x in jax.tree.leaves(part)]
    for rows in arrays:
        if rows not in (1, batch):
            raise ValueError(f"{type(part).__name__} has {rows} rows; expected 1 or {batch}, the batch of the query.")


def _check_head_axes(mask: masks.Mask | None, bias: biases.Bias | None, num_heads: int) -> None:
    if bias is not None and bias.shape[1] not in (1, num_heads):
        raise ValueError(
            f"bias has {bias.shape[1]} heads; expected 1 or {num_heads}, the heads of the query. "
            "Was num_heads changed without its position scheme?"
        )
    for x in jax.tree.leaves(mask):
        if x.ndim == 4 and x.shape[1] not in (1, num_heads):
            raise ValueError(f"mask has shape {x.shape}; expected 1 or {num_heads} heads on axis 1.")
