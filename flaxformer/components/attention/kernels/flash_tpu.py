"""The flash attention that ships with JAX for TPUs: `jax.experimental.pallas.ops.tpu.flash_attention`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.kernels import request
from flaxformer.components.attention.kernels.translation import (
    expect,
    multiple_of,
    segment_ids,
    translate,
    without_blind_rows,
)
from flaxformer.types import Array

BLOCK = 128  # of its default block sizes; lanes of a TPU


def attend_flash_tpu(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    **options: Any,
) -> Float[Array, "B T N H"]:
    """Attends with JAX's kernel; arguments as in `attend`, which asks the table and `refusals` first."""
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    asked = request.check(query, key, value, **options)
    plain = expect("flash_tpu", translate(asked.mask))
    batch, length, heads, _ = query.shape
    key_length = key.shape[1]
    bias = None
    if asked.bias is not None:
        bias = asked.bias.dense(length, key_length) / asked.scale  # the kernel multiplies it by the scale, too
        bias = jnp.broadcast_to(bias, (batch, heads, length, key_length))
    ids = segment_ids(plain, batch, length, key_length)
    attended = flash_attention(
        *(x.swapaxes(1, 2) for x in (query, key, value)),
        bias,
        None if ids is None else SegmentIds(*ids),
        causal=plain.causal,
        sm_scale=asked.scale,
    )
    return without_blind_rows(attended.swapaxes(1, 2), asked.mask, plain, key_length)


def refusals(asked: request.Request) -> list[str]:
    """What the kernel cannot do about a request, beside what the table of kernels says."""
    width = asked.query.shape[3]
    reasons = multiple_of(BLOCK, T=asked.query.shape[1], S=asked.key.shape[1])
    if width > BLOCK and width % BLOCK:
        reasons.append(f"the head size must be at most {BLOCK} or a multiple of it, got H={width}")
    if asked.bias is not None and not asked.scale:
        reasons.append("a bias needs a scale other than 0")
    plain = translate(asked.mask)
    return [*reasons, plain] if isinstance(plain, str) else reasons
