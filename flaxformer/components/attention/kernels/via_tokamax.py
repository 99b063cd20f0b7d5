"""Tokamax, a library of kernels for GPUs and TPUs, through `tokamax.dot_product_attention` (read at version 0.0.12)."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import request
from flaxformer.components.attention.kernels.translation import Plain, translate
from flaxformer.types import Array


def attend_tokamax(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    **options: Any,
) -> Float[Array, "B T N V"]:
    """Attends with Tokamax; arguments as in `attend`, which asks the table and `refusals` first.

    Causal masks, windows and key lengths are named, any other mask is handed over as an array. The implementation is
    named too: left to itself Tokamax falls back to XLA, which holds the square of scores.

    Raises:
      ValueError: where Tokamax's kernels do not take the request.
    """
    tokamax = importlib.import_module("tokamax")
    asked = request.check(query, key, value, **options)
    length, key_length = query.shape[1], key.shape[1]
    plain = translate(asked.mask)
    named = isinstance(plain, Plain) and plain.query_ids is None
    dense = None if named or asked.mask is None else asked.mask.dense(length, key_length)
    plain = plain if named and isinstance(plain, Plain) else Plain()
    window = None
    if plain.left is not None or plain.right not in (None, 0):
        window = (key_length if plain.left is None else plain.left, key_length if plain.right is None else plain.right)
    lengths = plain.key_lengths
    try:
        attended = tokamax.dot_product_attention(
            query,
            key,
            value,
            bias=None if asked.bias is None else asked.bias.dense(length, key_length).astype(query.dtype),
            mask=dense,
            scale=asked.scale,
            is_causal=plain.right == 0,
            key_value_seq_lengths=None if lengths is None else jnp.broadcast_to(jnp.asarray(lengths), len(query)),
            local_window_size=window,
            logits_soft_cap=asked.softcap,
            precision=asked.precision,
            implementation=("mosaic", "triton") if jax.default_backend() == "gpu" else ("mosaic",),
        )
    except (NotImplementedError, ExceptionGroup) as error:
        raise ValueError(f"tokamax: its kernels do not take this request ({error}). Use another kernel.") from error
    return _without_blind_rows(attended, asked.mask, key_length)


def _without_blind_rows(output: Array, mask: masks.Mask | None, key_length: int) -> Array:
    if mask is None:
        return output
    sees = mask.dense(output.shape[1], key_length).any(-1)  # [#B #N T]
    return jnp.where(sees.swapaxes(1, 2)[..., None], output, 0)


def missing() -> str | None:
    """Why Tokamax cannot be used at all, None if it can."""
    if importlib.util.find_spec("tokamax") is None:
        return "tokamax is not installed: pip install tokamax"
    return None


def refusals(asked: request.Request) -> list[str]:
    """What Tokamax cannot do about a request, beside what the table of kernels says."""
    length, key_length = asked.query.shape[1], asked.key.shape[1]
    reasons = []
    if asked.softcap is not None and asked.bias is not None:
        reasons.append("a softcap together with a bias means another thing there: the bias is bent too")
    plain = translate(asked.mask)
    windowed = isinstance(plain, Plain) and (plain.left is not None or plain.right not in (None, 0))
    if windowed and length != key_length:
        reasons.append(f"a window needs equally many queries and keys, got T={length}, S={key_length}")
    if not length or not key_length:
        reasons.append(f"lengths must not be 0, got T={length}, S={key_length}")
    return reasons
