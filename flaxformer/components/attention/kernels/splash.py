"""The splash attention that ships with JAX for TPUs: `jax.experimental.pallas.ops.tpu.splash_attention`."""

from __future__ import annotations

from typing import Any, cast

import jax
from jaxtyping import Float

from flaxformer.components.attention.kernels import request
from flaxformer.components.attention.kernels.translation import (
    Plain,
    expect,
    multiple_of,
    segment_ids,
    translate,
    without_blind_rows,
)
from flaxformer.types import Array

BLOCK = 128  # of its default block sizes; lanes of a TPU


def attend_splash(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    interpret: bool = False,
    **options: Any,
) -> Float[Array, "B T N V"]:
    """Attends with JAX's kernel; arguments as in `attend`, which asks the table and `refusals` first.

    It has no scale of its own: queries are scaled before, which rounds them where they are in half precision and the
    scale is no power of two. `interpret` runs it in Pallas' interpreter, on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    asked = request.check(query, key, value, **options)
    plain = expect("splash", translate(asked.mask))
    batch, length, heads, _ = query.shape
    picture = splash_attention.MultiHeadMask([_picture(plain, length, key.shape[1])] * heads)
    kernel = splash_attention.make_splash_mha(
        picture, head_shards=1, q_seq_shards=1, attn_logits_soft_cap=asked.softcap, interpret=interpret
    )
    ids = segment_ids(plain, batch, length, key.shape[1])
    ids = None if ids is None else splash_attention.SegmentIds(*ids)
    query, key, value = (x.swapaxes(1, 2) for x in (query * asked.scale, key, value))
    attended = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, ids, asked.sinks))(query, key, value, ids)
    attended = cast(Array, attended).swapaxes(1, 2)
    return without_blind_rows(attended, asked.mask, plain, key.shape[2])


def _picture(plain: Plain, query_length: int, key_length: int) -> Any:
    """What distance shows, in splash attention's own masks."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = query_length, key_length
    if plain.everywhere:
        return splash_attention.FullMask(shape)
    if plain.causal:
        return splash_attention.CausalMask(shape)
    return splash_attention.LocalMask(shape, (plain.left, plain.right), offset=0)


def refusals(asked: request.Request) -> list[str]:
    """What the kernel cannot do about a request, beside what the table of kernels says."""
    length, key_length = asked.query.shape[1], asked.key.shape[1]
    reasons = multiple_of(BLOCK, T=length, S=key_length)
    plain = translate(asked.mask)
    if isinstance(plain, str):
        return [*reasons, plain]
    if plain.left is not None and length > key_length:
        reasons.append(f"a window may leave the keys behind, got T={length}, S={key_length}")
    if plain.right is not None and plain.right < 0 or plain.left is not None and plain.left < 0:
        reasons.append("a window must hold the query's own position")
    return reasons
