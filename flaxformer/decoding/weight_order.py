"""In which order a loop's weights lie while it runs.

On CPU, products of several rows are fast where the weights lie by output (see `flaxformer.components.products`), and a
layer's weights are read out of a stack fast where the layers are its first axis. A loop of several steps therefore
brings its weights into that order once, before it starts; what it costs is one more copy of them. One or two rows read
them fast as they are stored. `flaxformer.decoding.prepared_weights` makes the copy once for many loops.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.architectures.repeat import layers_first
from flaxformer.components import products
from flaxformer.components.products import BLOCK_ROWS, is_matrix, map_parameters, read_in_loop
from flaxformer.types import Array

FEWEST_STEPS = 16
"""From how many steps on turning the weights pays: turning T5 1.1 small takes about as long as five steps of 8 rows."""

MOST_ROWS = 64
"""Up to how many rows XLA does better with the weights first."""

MOST_BYTES = 2**31
"""Up to which size a second copy is made."""

PREPARED = "prepared_weights"
"""The collection of matrices that have been turned once for many loops, by the names of their paths."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Where the parameters of scanned layers are, and along which axis they are stacked."""

    path: tuple[str, ...]
    axis: int

    def holds(self, path: Any) -> bool:
        """Whether a parameter is one of them."""
        return tuple(getattr(key, "key", key) for key in path[: len(self.path)]) == self.path


@dataclasses.dataclass(frozen=True)
class Order:
    """How weights lie.

    Attributes:
      matrices: as `flaxformer.components.products.read_in_loop` takes it.
      stack: of layers that now are the first axis; None where there are none.
    """

    matrices: products.Order | None = None
    stack: Stack | None = None

    def concerns(self, path: Any, leaf: Array) -> tuple[bool, bool]:
        """Whether a parameter is part of the stack, and whether it is a matrix that is turned."""
        stacked = self.stack is not None and self.stack.holds(path)
        return stacked, self.matrices == "turned" and is_matrix(path, leaf, stacked)

    def lay(self, path: Any, leaf: Array) -> Array:
        """A parameter as it lies in this order."""
        stacked, turned = self.concerns(path, leaf)
        if stacked and self.stack:
            leaf = jnp.moveaxis(leaf, min(self.stack.axis, leaf.ndim - 1), 0)
        return leaf.mT if turned else leaf


OUTSIDE = Order()
AS_STORED = Order("as stored")


def path_name(path: Any) -> str:
    """A parameter's path as one string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def order_weights(
    params: Any, rows: int, steps: int, stack: Stack | None = None, prepared: Mapping[str, Any] | None = None
) -> tuple[Any, Order]:
    """`params` in the order in which a loop reads them fast; as they are where that does not pay.

    Args:
      params: of the model.
      rows: how many the model reads at a step. One or two need no turned weights, and many do not.
      steps: how many are ahead.
      stack: the layers that the model scans.
      prepared: matrices that are turned already.
    """
    if jax.default_backend() != "cpu":
        return params, OUTSIDE
    order = Order("turned" if BLOCK_ROWS < rows <= MOST_ROWS else "as stored", stack)
    known = prepared if prepared and order.matrices == "turned" else {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    size = sum(leaf.size * leaf.dtype.itemsize for path, leaf in leaves if any(order.concerns(path, leaf)))
    if not known and (steps < FEWEST_STEPS or not 0 < size <= MOST_BYTES):
        return params, AS_STORED

    def ordered(path: Any, leaf: Array) -> Any:
        if (name := path_name(path)) in known:
            return known[name]
        # The barrier makes it a copy; what is not read is not copied.
        return jax.lax.optimization_barrier(order.lay(path, leaf)) if any(order.concerns(path, leaf)) else leaf

    return jax.tree_util.tree_map_with_path(ordered, params), order


@contextlib.contextmanager
def reading(params: Any, order: Order) -> Iterator[Any]:
    """What the model is to be called with. The second transpose and that of the product cancel."""

    def as_stored(path: Any, leaf: Any) -> Any:
        stacked, turned = order.concerns(path, leaf)
        return leaf.mT if turned and not stacked else leaf  # the scan takes care of its own

    with read_in_loop(order.matrices), layers_first(order.stack is not None):
        yield map_parameters(as_stored, params)
