"""Comparing parameter trees with expected ones that are kept as small JSON files.

expected = ExpectedJsonFiles("flaxformer/architectures/t5/testdata")
expected.check_params_and_axes(variables["params"], variables["params_axes"], "encoder.json")
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxformer.architectures.common.param_remapping import filter_out_metadata
from flaxformer.errors import BrokenExpectationError

_LINE = 80


def param_shapes(params: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of each parameter as a list."""
    return jax.tree.map(lambda x: list(x.shape), filter_out_metadata(params))


def param_dtypes_shapes(params: Mapping[str, Any]) -> dict[str, Any]:
    """Type and shape of each parameter: `["float32", 3, 7]`."""
    return jax.tree.map(lambda x: [str(x.dtype), *x.shape], filter_out_metadata(params))


def param_dtypes_shapes_axes(params: Mapping[str, Any], params_axes: Mapping[str, Any]) -> dict[str, Any]:
    """Type, axis names and sizes of each parameter: `["float32", "vocab=3", "embed=7"]`.

    Raises:
      ValueError: when a name in `params_axes` does not end in `_axes`, or a parameter has not one name per axis.
    """
    names = {}
    flat_axes: dict[Any, Any] = flatten_dict(filter_out_metadata(params_axes))
    for path, metadata in flat_axes.items():
        if not path[-1].endswith("_axes"):
            raise ValueError(
                f"params_axes holds {'/'.join(path)}; expected names that end in '_axes'. "
                "Pass the collection params_axes as init returned it."
            )
        names[(*path[:-1], path[-1].removesuffix("_axes"))] = tuple(metadata.names)

    def described(path: tuple[str, ...], param: Any) -> list[str]:
        if len(names.get(path, ())) != len(param.shape):
            raise ValueError(
                f"parameter {'/'.join(path)} of shape {tuple(param.shape)} has axis names {names.get(path)}; "
                "expected one for each axis."
            )
        sizes = zip(names.get(path, ()), param.shape, strict=True)
        return [str(param.dtype), *(f"{name}={size}" for name, size in sizes)]

    flat = flatten_dict(filter_out_metadata(params))
    return unflatten_dict({path: described(path, param) for path, param in flat.items()})


def format_params_shapes(params_shapes: Any, indent: int = 0) -> str:
    """JSON, indented by 2, in which innermost lists take one line where that is shorter than 80 characters.

    >>> print(format_params_shapes({"embedding": ["float32", "vocab=3", "embed=7"]}))
    {
      "embedding": ["float32", "vocab=3", "embed=7"]
    }
    """
    inner, outer = " " * (indent + 2), " " * indent
    if isinstance(params_shapes, Mapping) and params_shapes:
        lines = []
        for key, value in params_shapes.items():
            label = f"{inner}{json.dumps(key)}: "
            flat = json.dumps(value)
            fits = isinstance(value, list) and len(label) + len(flat) < _LINE
            lines.append(label + (flat if fits else format_params_shapes(value, indent + 2)))
        return "{\n" + ",\n".join(lines) + f"\n{outer}}}"
    if isinstance(params_shapes, list) and params_shapes:
        lines = [inner + format_params_shapes(item, indent + 2) for item in params_shapes]
        return "[\n" + ",\n".join(lines) + f"\n{outer}]"
    return json.dumps(params_shapes)


def abstract_init(
    module: nn.Module,
    *,
    inputs: Mapping[str, Any],
    static_kwargs: Mapping[str, Any] | None = None,
    rngs: Any = None,
) -> Any:
    """The variables `module` would have, as shapes and types, without computing any.

    Args:
      module: the module.
      inputs: keyword arguments that are arrays.
      static_kwargs: other keyword arguments.
      rngs: for `init`; `PRNGKey(0)` when None.
    """
    init = functools.partial(module.init, **(static_kwargs or {}))
    return jax.eval_shape(init, jax.random.PRNGKey(0) if rngs is None else rngs, **inputs)


class ExpectedJsonFiles:
    """A folder of JSON files that state parameter trees.

    Attributes:
      path: the folder; relative paths are below the environment variable TEST_SRCDIR, as absl's tests expect.
    """

    def __init__(self, base_path: str | os.PathLike[str]):
        self.path = pathlib.Path(os.environ.get("TEST_SRCDIR", "")) / base_path

    def get_params(self, filename: str) -> dict[str, Any]:
        """What a file states.

        Raises:
          ValueError: when there is no such file.
        """
        file = self.path / filename
        if not file.is_file():
            raise ValueError(f"there is no file {file}; expected a JSON file with a parameter tree.")
        return json.loads(file.read_text())

    def check_params_shapes_only(self, params: Mapping[str, Any], expected_filename: str) -> None:
        """Compares names and shapes. Raises an AssertionError where they differ, after printing the actual tree."""
        self._check(param_shapes(params), expected_filename)

    def check_params(self, params: Mapping[str, Any], expected_filename: str) -> None:
        """Compares names, types and shapes; otherwise as `check_params_shapes_only`."""
        self._check(param_dtypes_shapes(params), expected_filename)

    def check_params_and_axes(
        self, params: Mapping[str, Any], params_axes: Mapping[str, Any], expected_filename: str
    ) -> None:
        """Compares names, types, shapes and axis names; otherwise as `check_params_shapes_only`."""
        self._check(param_dtypes_shapes_axes(params, params_axes), expected_filename)

    def _check(self, actual: Mapping[str, Any], filename: str) -> None:
        expected = flatten_dict(filter_out_metadata(self.get_params(filename)), sep="/")
        flat = flatten_dict(actual, sep="/")
        differing = sorted(name for name in {*flat, *expected} if flat.get(name) != expected.get(name))
        if not differing:
            return
        print(format_params_shapes(actual))
        name = differing[0]
        raise BrokenExpectationError(
            f"{len(differing)} parameters differ from {filename}, the first is {name}: {flat.get(name)}; "
            f"expected {expected.get(name)}. The actual tree is printed above; save it there if it is right."
        )
