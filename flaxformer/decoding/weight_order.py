"""In which order a loop's weights lie while it runs.

On CPU, products of several rows are fast where the weights lie by output (see `flaxformer.components.products`), and a
layer's weights are read out of a stack fast where the layers are its first axis. A loop of several steps therefore
brings its weights into that order once, before it starts; what it costs is one more copy of them. `prepare_weights`
makes that copy once for many loops. One or two rows read weights fast as they are stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.architectures.repeat import layers_first
from flaxformer.components import products
from flaxformer.components.int8_matrix import Int8Matrix
from flaxformer.components.products import BLOCK_ROWS, is_matrix, map_parameters, read_in_loop
from flaxformer.types import Array, DType

FEWEST_STEPS = 16
"""From how many steps on turning the weights pays: turning T5 1.1 small takes about as long as five steps of 8 rows."""

MOST_ROWS = 64
"""Up to how many rows XLA does better with the weights first."""

MOST_BYTES = 2**31
"""Up to which size a second copy is made."""


PREPARED = "prepared_weights"
"""The collection of matrices that `prepare_weights` has turned, by the names of their paths."""

NOT_IN_LOOPS = "encoder"
"""What no loop reads."""


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


def prepare_weights(model: Any, variables: Mapping[str, Any], dtype: DType = jnp.float32) -> dict[str, Any]:
    """`variables` for many calls of `generate` or `stream`: with a copy of the weights as loops on CPU read them fast.

    Without it every call of three rows or more makes that copy: for T5 1.1 small about 0.1 s of the 1.3 s that 64
    tokens of 4 beams take. The copy holds the decoder's float32 matrices. It belongs to these parameters; after they
    have changed it has to be made anew. On GPU and TPU there is nothing to prepare.

    With `dtype=jnp.int8` the copy has a quarter of the size, and loops of 3 to 64 rows multiply integers: weights are
    rounded by output, what they are multiplied with by row (as in Yao et al. 2022, "ZeroQuant", section 4.1, without
    groups). Results are then no longer those of float32. Encoders, prompts and loops of one or two rows read the
    parameters as they are.

        variables = prepare_weights(model, variables)
        for inputs in batches:
            generate(model, variables, inputs, strategy=BeamSearch(4), max_new_tokens=64, eos_id=1)

    Args:
      model: as `generate` takes it.
      variables: with the collection 'params'.
      dtype: of the copy, float32 or int8.

    Returns:
      The same variables, with the collection 'prepared_weights'.

    Raises:
      ValueError: for another dtype.
    """
    kind = jnp.dtype(dtype)
    if kind not in (jnp.float32, jnp.int8):
        raise ValueError(f"dtype is {kind.name}; expected float32 or int8. Leave it out for the weights as they are.")
    if jax.default_backend() != "cpu":
        return dict(variables)
    stack: Any = model.apply(variables, method=scanned_stack)
    return {**variables, PREPARED: _prepared(variables["params"], Order("turned", stack), kind == jnp.int8)}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _prepared(params: Any, order: Order, rounded: bool) -> dict[str, Any]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if order.concerns(path, leaf)[1] and path[0].key != NOT_IN_LOOPS:
            turned = order.lay(path, leaf)
            found[_name(path)] = Int8Matrix.rounded(turned.mT).mT if rounded else turned
    return found


def _name(path: Any) -> str:
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
        if (name := _name(path)) in known:
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


def scanned_stack(module: Any) -> Stack | None:
    """The layers that a bound model's decoder scans, if it does so by `flaxformer.architectures.repeat`."""
    decoder: Any = getattr(module, "decoder", None)
    if not getattr(decoder, "scan_layers", False) or getattr(decoder, "_scans_itself", True):
        return None
    return Stack(getattr(decoder, decoder._scan_name).path, decoder.scan_axis)
