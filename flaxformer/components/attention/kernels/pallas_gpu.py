"""The fused attention that ships with JAX for GPUs: `jax.experimental.pallas.ops.gpu.attention`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxformer.components.attention.kernels import request
from flaxformer.components.attention.kernels.translation import Plain, expect, multiple_of, translate
from flaxformer.types import Array

BLOCK = 128
WIDEST = 128


def attend_pallas_gpu(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    *,
    interpret: bool = False,
    **options: Any,
) -> Float[Array, "B T N H"]:
    """Attends with JAX's kernel; arguments as in `attend`, which asks the table and `refusals` first.

    `interpret` runs it in Pallas' interpreter, on any platform, slowly.
    """
    from jax.experimental.pallas.ops.gpu.attention import mha

    asked = request.check(query, key, value, **options)
    plain = expect("pallas_gpu", translate(asked.mask))
    ids = None
    if plain.query_ids is not None:
        ids = jnp.broadcast_to(jnp.asarray(plain.query_ids, jnp.int32), query.shape[:2])
    return mha(query, key, value, ids, asked.scale, plain.causal, interpret=interpret)


def refusals(asked: request.Request) -> list[str]:
    """What the kernel cannot do about a request, beside what the table of kernels says."""
    length, key_length, width = asked.query.shape[1], asked.key.shape[1], asked.query.shape[3]
    reasons = multiple_of(BLOCK, T=length)
    if length != key_length:
        reasons.append(f"queries and keys must be equally many, got T={length}, S={key_length}")
    if width > WIDEST or width < 16:
        reasons.append(f"the head size must be 16 to {WIDEST}, got H={width}")
    plain = translate(asked.mask)
    if isinstance(plain, str):
        reasons.append(plain)
    elif not _same_segments(plain):
        reasons.append("segments of queries and keys must be one and the same array")
    return reasons


def _same_segments(plain: Plain) -> bool:
    """Whether queries and keys share their segments, as far as is known while tracing."""
    first, second = plain.query_ids, plain.key_ids
    known = isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    return first is second or (known and np.array_equal(first, second))
