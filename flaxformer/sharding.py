"""Logical axis names of parameters: reading them, and checking that every parameter has them.

Modules record one name per axis of each parameter in the collection `params_axes`, under the parameter's own path with
`_axes` appended to its leaf. A runner turns these names into places on a mesh.
"""

from collections.abc import Mapping
from typing import Any

from flax.core import unfreeze
from flax.linen import partitioning
from flax.traverse_util import flatten_dict

from flaxformer.errors import BrokenExpectationError, WrongTypeError

_SUFFIX = "_axes"


class AxisNames(tuple):
    """Names of the axes of one parameter: a tuple that JAX's pytree functions take for a leaf."""

    def __new__(cls, *names: str) -> "AxisNames":
        return super().__new__(cls, names)

    def __getnewargs__(self) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"AxisNames{tuple(self)!r}"


def axis_names(*names: str) -> partitioning.AxisMetadata:
    """The names of one parameter's axes, as they are recorded."""
    return partitioning.AxisMetadata(names=names)


def reduce_fn(x: Any, y: Any) -> partitioning.AxisMetadata:
    """Reducer for `sow('params_axes', ...)`: the same names may be recorded again, other names may not.

    Args:
      x: what was recorded before; empty at first.
      y: what is recorded now.

    Raises:
      WrongTypeError: (a ValueError and TypeError) when `y` is no AxisMetadata.
      ValueError: when `x` holds other names.
      BrokenExpectationError: (a ValueError and AssertionError) when `x` is something else altogether.
    """
    if not isinstance(y, partitioning.AxisMetadata):
        raise WrongTypeError(
            f"axis names came as {type(y).__name__} {y!r}; expected AxisMetadata. "
            "Make them with flaxformer.sharding.axis_names(...)."
        )
    if x and not isinstance(x, partitioning.AxisMetadata):
        raise BrokenExpectationError(
            f"params_axes already holds {x!r}; expected nothing or AxisMetadata. "
            "Do not sow other things under this name."
        )
    if x and x != y:
        raise ValueError(
            f"axis names {y} differ from {x}, recorded before for the same parameter; expected one set of names. "
            "Give every use of a shared parameter the same names."
        )
    return y


def get_axis_names(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The axis names of `variables`, arranged as its parameters are.

    Args:
      variables: what `init`, or `jax.eval_shape` of it, returned.

    Returns:
      Nested dict with `AxisNames` as leaves.

    Raises:
      WrongTypeError: (a ValueError and TypeError) for a leaf that is no AxisMetadata.
    """

    def rename(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {key.removesuffix(_SUFFIX): leaf_names(key, value) for key, value in tree.items()}

    def leaf_names(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return rename(value)
        if not isinstance(value, partitioning.AxisMetadata):
            raise WrongTypeError(
                f"params_axes holds {type(value).__name__} {value!r} at {key!r}; expected AxisMetadata. "
                "Create parameters with flax.linen.partitioning.param_with_axes."
            )
        return AxisNames(*value.names)

    return rename(unfreeze(variables["params_axes"]))


def check_params_and_axis_names_match(variables: Mapping[str, Any]) -> None:
    """Checks that every parameter has one name for each of its axes.

    Raises:
      ValueError: naming the first parameter that has none, or not as many as it has axes.
    """
    names: dict[Any, Any] = flatten_dict(get_axis_names(variables), is_leaf=lambda _, x: isinstance(x, AxisNames))
    params: dict[Any, Any] = flatten_dict(unfreeze(variables["params"]))
    for path, param in params.items():
        joined = "/".join(path)
        if path not in names:
            raise ValueError(
                f"axis names were not sow'd for parameter {joined}; expected {len(param.shape)} of them. "
                "Create it with flax.linen.partitioning.param_with_axes(..., axes=...)."
            )
        if len(names[path]) != len(param.shape):
            raise ValueError(
                f"parameter {joined} of shape {tuple(param.shape)} has axis names {tuple(names[path])}: "
                "there is not one name for each dimension. Change its axes=..."
            )
