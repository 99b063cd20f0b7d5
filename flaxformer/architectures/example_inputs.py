"""What a model may be called with, found out from how it is made: names, shapes and types of one example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LENGTH = 512  # tokens, unless there are fewer positions


def table_rows(table: Any) -> int | None:
    """The rows of a position table; None for one of any length."""
    return getattr(table, "num_embeddings", None) or getattr(table, "max_length", None)


def stack_input(factory: Callable[..., nn.Module], length: int | None = None) -> jax.ShapeDtypeStruct:
    """What the stack that `factory` makes reads: one row of `length` tokens, or what its embedder says of one example.

    Args:
      factory: makes the stack; called with `shared_token_embedder=`.
      length: tokens; `LENGTH` when None, or as many as the stack has positions if these are fewer.
    """
    stack = factory(shared_token_embedder=None)
    shape = getattr(_made(stack, "token_embedder_factory"), "input_shape", None)
    if shape is not None:
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    rows = table_rows(_made(stack, "position_embedder_factory"))
    return jax.ShapeDtypeStruct((1, length or min(LENGTH, rows or LENGTH)), jnp.int32)


def _made(stack: nn.Module, name: str) -> Any:
    factory = getattr(stack, name, None)
    return None if factory is None else factory()
