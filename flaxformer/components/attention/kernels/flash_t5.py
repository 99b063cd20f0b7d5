"""Flash attention for GPUs with T5's bucketed bias made inside the kernel, from the table.

No library kernel has it: elsewhere the bias is an array `[N T S]`, which takes the memory that flash attention saves.
Here a tile of logits computes its buckets from its position (`flash_t5_tile`), the backward pass sums the gradient of
each bucket, and tiles far from the diagonal, which have one bucket, add one number.

It is written in Pallas for its Triton backend. It has been run in Pallas' interpreter and lowered to Triton's language
in tests, but not yet on a device: it is never chosen by "auto".

Source: Dao 2023 (FlashAttention-2), https://arxiv.org/abs/2307.08691; the bias is that of Raffel et al. 2020, section
2.1, https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.components.attention.kernels import flash_t5_tile as tiles
from flaxformer.components.attention.kernels import request
from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.attention.kernels.flash_t5_backward import backward
from flaxformer.components.attention.kernels.flash_t5_forward import forward
from flaxformer.components.attention.kernels.translation import Plain, translate
from flaxformer.types import Array

WIDTHS = (16, 32, 64, 128)  # Triton's tiles have sizes that are powers of two, and products at least 16


def attend_flash_t5(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    return_residuals: bool = False,
    block: int = 64,
    interpret: bool = False,
    **options: Any,
) -> Float[Array, "B T N H"] | tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attends tile by tile; what it computes is `attend_reference`, as far as `refusals` is silent.

    Args:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K; keys are not repeated.
      value: `[B S K H]`.
      return_residuals: return also the logarithm of the softmax's denominator, `[B N T]`.
      block: queries and keys of a tile, a power of two from 16 on.
      interpret: run in Pallas' interpreter, on any platform, slowly.
      **options: see `flaxformer.components.attention.backends.attend`.
    """
    asked = request.check(query, key, value, **options)
    plain = translate(asked.mask)
    unread = {"softcap": asked.softcap, "sinks": asked.sinks, "dropout": asked.dropout_rate or None}
    reasons = [f"{name} is not supported" for name, given in unread.items() if given is not None] + refusals(asked)
    if reasons:
        raise ValueError(f"flash_t5: {'; '.join(reasons)}.")
    assert isinstance(plain, Plain)
    bias = asked.bias
    buckets = table = None
    if isinstance(bias, TableBias):
        table = jnp.asarray(bias.table)
        buckets = tiles.Buckets(table.shape[1], bias.bidirectional, bias.max_distance)
    setting = tiles.Setting(
        scale=asked.scale,
        left=plain.left,
        right=plain.right,
        buckets=buckets,
        groups=query.shape[2] // key.shape[2],
        block=block,
        interpret=interpret,
        precision=asked.precision,
    )
    length, key_length = query.shape[1], key.shape[1]
    query, key, value = (_pad(jnp.asarray(x), block) for x in (query, key, value))
    if table is not None:
        table = jnp.pad(table, ((0, 0), (0, (1 << (table.shape[1] - 1).bit_length()) - table.shape[1])))
    ids = [None if x is None else _pad(_rows(x, len(query)), block) for x in (plain.query_ids, plain.key_ids)]
    lengths = _lengths(plain, len(query), key_length)
    attended = _attend(setting, query, key, value, table, (lengths, *ids))
    output, log_sum_exp = cast(tuple[Array, Array], attended)
    output, log_sum_exp = output[:, :length], log_sum_exp[..., :length]
    return (output, log_sum_exp) if return_residuals else output


def refusals(asked: request.Request) -> list[str]:
    """What this kernel cannot do about a request, beside what the table of kernels says."""
    reasons = []
    if asked.query.shape[3] not in WIDTHS:
        reasons.append(f"the head size must be one of {', '.join(map(str, WIDTHS))}, got H={asked.query.shape[3]}")
    if not asked.query.shape[1] or not asked.key.shape[1]:
        reasons.append(f"lengths must not be 0, got T={asked.query.shape[1]}, S={asked.key.shape[1]}")
    plain = translate(asked.mask)
    if isinstance(plain, str):
        reasons.append(plain)
    if isinstance(asked.bias, TableBias) and asked.bias.bound:
        reasons.append("a T5 bias at positions other than 0, 1, 2... is not supported")
    elif asked.bias is not None and not isinstance(asked.bias, TableBias):
        reasons.append(f"its only bias is a T5 table, got {type(asked.bias).__name__}")
    return reasons


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting: tiles.Setting, query, key, value, table, data) -> tuple[Array, Array]:
    """Output and log-sum-exp; `data` is key lengths and segments."""
    output, log_sum_exp = forward(setting, query, key, value, _refs(table, data))
    return output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)


def _attend_forward(setting: tiles.Setting, query, key, value, table, data):
    output, log_sum_exp = forward(setting, query, key, value, _refs(table, data))
    kept = query, key, value, table, data, output, log_sum_exp
    return (output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)), kept


def _attend_backward(setting: tiles.Setting, kept, cotangents):
    """A change of the log-sum-exp enters like one of the weighted sum."""
    query, key, value, table, data, output, log_sum_exp = kept
    d_output, d_log_sum_exp = cotangents
    delta = jnp.einsum("btnh,btnh->bnt", d_output, output, preferred_element_type=jnp.float32)
    delta -= jnp.where(jnp.isinf(log_sum_exp), 0, d_log_sum_exp)
    d_query, d_key, d_value, d_table = backward(
        setting, query, key, value, _refs(table, data), d_output, log_sum_exp, delta
    )
    d_table = None if d_table is None else d_table.astype(table.dtype)
    return d_query, d_key, d_value, d_table, None


_attend.defvjp(_attend_forward, _attend_backward)


def _refs(table: Array | None, data: tuple[Array, Array | None, Array | None]) -> tiles.Refs:
    lengths, query_ids, key_ids = data
    return tiles.Refs(lengths, table, query_ids, key_ids)


def _pad(x: Array, block: int) -> Array:
    """Length, which is axis 1, made a multiple of the tiles."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))


def _rows(x: Any, batch: int) -> Int[Array, "B L"]:
    return jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, x.shape[1]))


def _lengths(plain: Plain, batch: int, key_length: int) -> Int[Array, " B"]:
    lengths = key_length if plain.key_lengths is None else jnp.clip(jnp.asarray(plain.key_lengths), 0, key_length)
    return jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), (batch,))
