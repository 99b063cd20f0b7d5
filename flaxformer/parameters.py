"""How parts declare their parameters."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import meta
from flax.linen import partitioning
from jax.sharding import PartitionSpec

from flaxformer.types import Initializer


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: Sequence[int], *, axes: Sequence[str] | None
) -> Any:
    """A float32 parameter of `module` with logical axis names, as `flax.linen.partitioning.param_with_axes` gives it.

    Flax traces `init` for the shape of a parameter that is there already, at every call: with `generate` of T5 1.1
    small a quarter of all tracing. One that is there and has this shape is returned at once.

    Args:
      module: the module, bound.
      name: of the parameter.
      init: called with a key, `shape` and float32 where the module is initialised.
      shape: of the parameter.
      axes: a name for each of its axes; None for none.

    Raises:
      flax.errors.ScopeParamShapeError: for a parameter of another shape.
    """
    shape, axes = tuple(shape), None if axes is None else tuple(axes)
    if module.has_variable("params", name) and not module.is_mutable_collection("params_axes"):
        value = meta.unbox(module.get_variable("params", name))
        if getattr(value, "shape", None) == shape:
            return value if axes is None else partitioning.with_sharding_constraint(value, PartitionSpec(*axes))
    return partitioning.param_with_axes(name, init, shape, jnp.float32, axes=axes, module=module)
