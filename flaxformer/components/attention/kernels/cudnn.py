"""cuDNN's fused attention, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import request
from flaxformer.types import Array


class Native(NamedTuple):
    """A mask in the words of cuDNN: what it knows itself, and the rest as an array.

    Attributes:
      causal: hide later keys.
      window: keys before the query that it sees, None for all. Only together with `causal`.
      key_lengths: `[B]`, None for all.
      rest: what has to become an array, None when nothing is left.
    """

    causal: bool
    window: int | None
    key_lengths: Int[Array, " B"] | None
    rest: masks.Mask | None


def attend_cudnn(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    **options: Any,
) -> Float[Array, "B T N H"]:
    """Attends with cuDNN; arguments as in `attend`, which asks the table and `refusals` first."""
    asked = request.check(query, key, value, **options)
    native = translate(asked.mask, query.shape[0], query.shape[1], key.shape[1])
    dense = None if native.rest is None else native.rest.dense(query.shape[1], key.shape[1])  # [#B #N T S]
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if asked.bias is None else asked.bias.dense(query.shape[1], key.shape[1]).astype(query.dtype),
        mask=dense,
        scale=asked.scale,
        is_causal=native.causal,
        key_value_seq_lengths=native.key_lengths,
        local_window_size=None if native.window is None else (native.window, 0),
        implementation="cudnn",
    )
    if dense is not None:
        blind = ~dense.any(-1).swapaxes(1, 2)[..., None]  # [#B T #N 1]
        attended = jnp.where(blind, 0, attended)
    if native.key_lengths is not None:
        attended = jnp.where((native.key_lengths > 0)[:, None, None, None], attended, 0)
    return attended


def translate(mask: masks.Mask | None, batch: int, query_length: int, key_length: int) -> Native:
    """What cuDNN does itself is taken out of the mask; nothing is computed."""
    parts = mask.parts if isinstance(mask, masks.And) else () if mask is None else (mask,)
    causal = any(isinstance(part, masks.Window) and part.right == 0 and not _bound(part) for part in parts)
    window, key_lengths, rest = None, None, []
    for part in parts:
        if causal and isinstance(part, masks.Window) and not _bound(part) and part.right in (0, None):
            sizes = [size for size in (window, part.left) if size is not None]
            window = min(sizes, default=None)
        elif isinstance(part, masks.KeyLengths) and key_lengths is None:
            key_lengths = jnp.broadcast_to(jnp.asarray(part.lengths, jnp.int32), (batch,))
        else:
            rest.append(part)
    rest = masks.combine(*rest)
    together = rest is not None and (causal or key_lengths is not None)  # rows may be blind only by both together
    if together or (window is not None and query_length > key_length):  # or because the window has left the keys
        rest = mask
        causal, window, key_lengths = False, None, None
    return Native(causal, window, key_lengths, rest)


def refusals(asked: request.Request) -> list[str]:
    """What cuDNN cannot do about the sizes of a request."""
    length, width, key_length = asked.query.shape[1], asked.query.shape[3], asked.key.shape[1]
    reasons = []
    if width % 8 or width > 128:
        reasons.append(f"the head size must be a multiple of 8 up to 128, got H={width}")
    dense = translate(asked.mask, asked.query.shape[0], length, key_length).rest is not None
    if (asked.bias is not None or dense) and (length % 2 or key_length % 2):
        what = "bias" if asked.bias is not None else "mask array"
        reasons.append(f"{what} gradient needs even lengths, got T={length}, S={key_length}")
    if not length or not key_length:
        reasons.append(f"lengths must not be 0, got T={length}, S={key_length}")
    return reasons


def _bound(window: masks.Window) -> bool:
    return window.query_positions is not None or window.key_positions is not None
