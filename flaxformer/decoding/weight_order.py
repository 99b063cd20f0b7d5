"""In which order a loop's weights lie while it runs.

On CPU, products of a few rows are fast where the weights lie by output (see `flaxformer.components.products`). A loop
of several steps therefore turns its matrices once, before it starts; what it costs is one more copy of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.components.products import weights_first
from flaxformer.types import Array

FEWEST_STEPS = 16
"""From how many steps on turning the weights pays: turning T5 1.1 small takes about as long as five steps of 8 rows."""

MOST_ROWS = 64
"""Up to how many rows XLA does better with the weights first."""

MOST_BYTES = 2**31
"""Up to which size a second copy is made."""


def turn_weights(params: Any, rows: int, steps: int) -> Any | None:
    """`params` with its float32 matrices `kernel` by output, `[N K]`; None where that does not pay.

    Args:
      params: of the model.
      rows: how many the model reads at a step. One row needs no turned weights.
      steps: how many are ahead.
    """
    if jax.default_backend() != "cpu" or not 1 < rows <= MOST_ROWS or steps < FEWEST_STEPS:
        return None
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _is_kernel(path, leaf)]
    if not kernels or 4 * sum(leaf.size for leaf in kernels) > MOST_BYTES:
        return None
    return _transposed(params, jax.lax.optimization_barrier)  # one each: what the loop does not read is not turned


@contextlib.contextmanager
def reading(params: Any, turned: bool) -> Iterator[Any]:
    """What the model is to be called with. The second transpose and that of the product cancel."""
    with weights_first(turned):
        yield _transposed(params) if turned else params


def _transposed(params: Any, held: Callable[[Array], Array] = lambda x: x) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: held(x.T) if _is_kernel(path, x) else x, params)


def _is_kernel(path: Any, leaf: Array) -> bool:
    return getattr(path[-1], "key", None) == "kernel" and leaf.ndim == 2 and leaf.dtype == jnp.float32
