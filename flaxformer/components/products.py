"""The product of a few rows with many weights, in forms that XLA computes fast on CPU.

Each is for one place: a loop in which few rows read all weights of a model at every step, as decoding does. Elsewhere a
product is `jax.lax.dot_general`, which is what large ones want, and what gradients are fast for.
"""

import contextlib
import contextvars
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.int8_matrix import Int8Matrix
from flaxformer.telling import told
from flaxformer.types import Array, Precision

Order = Literal["as stored", "turned"]

_ORDER: contextvars.ContextVar[Order | None] = contextvars.ContextVar("order_of_weights", default=None)

TERMS = 8
"""How many blocks of weights one pass of `row_times_weights` reads side by side."""

BLOCK_ROWS = 2
"""How many rows may each read the weights that way. The second finds them in a cache; three take as long turned."""

WIDEST = 4096
"""Up to how many columns that is faster than XLA's product, whose reads are long enough beyond."""


def read_in_loop(order: Order | None) -> contextlib.AbstractContextManager[Order | None]:
    """While a model is traced, its products with matrices of weights are those of a loop on CPU.

    Args:
      order: how the loop has laid the weights: "turned", by output, `[N K]`, or "as stored", `[K N]`. None: products as
        they are outside of loops.
    """
    return told(_ORDER, order)


def weights_are_turned() -> bool:
    """Whether a model is being traced for a loop that has turned its weights."""
    return _ORDER.get() == "turned"


def is_matrix(path: Any, leaf: Array, stacked: bool = False) -> bool:
    """Whether a parameter is one of those that are turned: a matrix `kernel` of float32 or int8, or a stack of them."""
    kind = isinstance(leaf, Int8Matrix) or leaf.dtype == jnp.float32
    return getattr(path[-1], "key", None) == "kernel" and leaf.ndim == 2 + stacked and kind


def map_parameters(function: Callable[[Any, Any], Any], params: Any) -> Any:
    """`function(path, parameter)` of every parameter."""
    return jax.tree_util.tree_map_with_path(function, params, is_leaf=lambda x: isinstance(x, Int8Matrix))


def turn_matrices(params: Any) -> Any:
    """`params` with its matrices transposed."""
    return map_parameters(lambda path, x: x.mT if is_matrix(path, x) else x, params)


def rows_times_weights(
    rows: Float[Array, "*R K"], weights: Float[Array, "K N"] | Int8Matrix, precision: Precision = None
) -> Float[Array, "*R N"]:
    """`rows @ weights`, in the form that suits the loop it is traced for, if it is traced for one."""
    if isinstance(weights, Int8Matrix):
        return weights.times(rows)
    order = _ORDER.get()
    if order == "turned" and rows.dtype == weights.dtype == jnp.float32:
        return turned_weights_times_rows(rows, weights.T, precision)
    if order is not None and _suit_blocks(rows, weights):
        by_row = [row_times_weights(row, weights) for row in rows.reshape(-1, len(weights))]
        return jnp.stack(by_row).reshape(*rows.shape[:-1], weights.shape[1])
    return jax.lax.dot_general(rows, weights, (((rows.ndim - 1,), (0,)), ((), ())), precision=precision)


def _suit_blocks(rows: Array, weights: Array) -> bool:
    few = 1 <= math.prod(rows.shape[:-1]) <= BLOCK_ROWS
    fits = len(weights) % TERMS == 0 and weights.shape[1] <= WIDEST
    return few and fits and rows.dtype == weights.dtype and jnp.issubdtype(weights.dtype, jnp.floating)


def turned_weights_times_rows(
    rows: Float[Array, "*R K"], weights: Float[Array, "N K"], precision: Precision = None
) -> Float[Array, "*R N"]:
    """`rows @ weights.T`, as `(weights @ rows.T).T`.

    XLA's products on CPU copy their second operand into another order first. Where rows are few and weights many the
    rows are the ones to copy, provided that the weights lie by output. This is for loops that turn them before they
    start; other weights are transposed at every product.
    """
    *shape, width = rows.shape
    # The barriers keep XLA from folding the transposes into the product, which then takes four times as long.
    columns = jax.lax.optimization_barrier(rows.reshape(math.prod(shape), width).T)
    products = jax.lax.optimization_barrier(jnp.matmul(weights, columns, precision=precision))
    return products.T.reshape(*shape, len(weights))


@jax.jit  # traced once for all layers
def row_times_weights(row: Float[Array, " K"], weights: Float[Array, "K N"]) -> Float[Array, " N"]:
    """`row @ weights`, as sums of few terms that XLA takes on all cores; K is a multiple of `TERMS`.

    Its product of a matrix with one vector runs on one core and waits for memory where rows of weights are short. One
    pass adds up `TERMS` blocks of `K / TERMS` rows each, element by element, and a small product adds what is left.
    """
    kind = jnp.promote_types(weights.dtype, jnp.float32)  # sums of bfloat16 are taken in float32, as in a product
    blocks = weights.reshape(TERMS, -1, weights.shape[1]).astype(kind)
    products = blocks * row.reshape(TERMS, -1, 1).astype(kind)
    sums = functools.reduce(operator.add, (products[i : i + 1] for i in range(TERMS)))[0]
    # The barrier keeps XLA from joining the sums and from moving slices of weights out of the loop, a copy of each.
    sums = jax.lax.optimization_barrier(sums)
    return (jnp.ones(len(sums), kind) @ sums).astype(weights.dtype)
