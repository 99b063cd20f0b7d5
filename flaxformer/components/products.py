"""The product of a few rows with many weights, in the order that XLA computes fast on CPU."""

import contextlib
import contextvars
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.telling import told
from flaxformer.types import Array, Precision

_WEIGHTS_FIRST: contextvars.ContextVar[bool] = contextvars.ContextVar("weights_first", default=False)


def weights_first(chosen: bool = True) -> contextlib.AbstractContextManager[bool]:
    """While a model is traced, its float32 products with matrices of weights become `weights_times_rows`.

    XLA's products on CPU copy their second operand into another order first. Where rows are few and weights many the
    rows are the ones to copy, provided that the weights lie by output, `[N K]`. This is for loops that bring them into
    that order before they start, as decoding does; other weights are transposed at every product.
    """
    return told(_WEIGHTS_FIRST, chosen)


def weights_are_first() -> bool:
    """Whether a model is being traced that way."""
    return _WEIGHTS_FIRST.get()


def is_matrix(path: Any, leaf: Array, stacked: bool = False) -> bool:
    """Whether a parameter is one of those that are brought into that order: a float32 matrix `kernel`, or a stack."""
    return getattr(path[-1], "key", None) == "kernel" and leaf.ndim == 2 + stacked and leaf.dtype == jnp.float32


def turn_matrices(params: Any) -> Any:
    """`params` with its matrices transposed."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x.T if is_matrix(path, x) else x, params)


def weights_come_first(*operands: Array) -> bool:
    """Whether a product of these is to be taken by `weights_times_rows`."""
    return weights_are_first() and all(x.dtype == jnp.float32 for x in operands)


def weights_times_rows(
    rows: Float[Array, "*R K"], weights: Float[Array, "N K"], precision: Precision = None
) -> Float[Array, "*R N"]:
    """`rows @ weights.T`, as `(weights @ rows.T).T`."""
    *shape, width = rows.shape
    # The barriers keep XLA from folding the transposes into the product, which then takes four times as long.
    columns = jax.lax.optimization_barrier(rows.reshape(math.prod(shape), width).T)
    products = jax.lax.optimization_barrier(jnp.matmul(weights, columns, precision=precision))
    return products.T.reshape(*shape, len(weights))
