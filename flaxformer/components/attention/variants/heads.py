"""What attention functions share: key heads without an axis, grouped products, and weights read off unit values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.types import Array


def with_head_axis(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """The three with equal ranks: one key head that has no axis, `[B S H]`, is given one."""
    if key.ndim == query.ndim - 1:
        key, value = key[..., None, :], value[..., None, :]
    return query, key, value


def weights_of(
    attention_fn: Callable[..., Array], query: Array, key: Array, bias: Array | Bias | None = None, **options: Any
) -> Float[Array, "B N T S"]:
    """The weights of any attention function that is linear in the values: key s is given the unit vector s.

    Args:
      attention_fn: called as by a layer.
      query: `[B T N H]`.
      key: `[B S K H]` or `[B S H]`.
      bias: as the function takes it.
      **options: likewise.
    """
    unit = jnp.eye(key.shape[1], dtype=query.dtype)  # [S S]
    unit = unit.reshape(1, key.shape[1], *(1,) * (key.ndim - 3), -1)
    value = jnp.broadcast_to(unit, (*key.shape[:-1], key.shape[1]))
    return attention_fn(query, key, value, bias, **options).swapaxes(1, 2)
