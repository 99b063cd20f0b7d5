"""Reads recorded cases, and makes the values that their constructors and arguments describe.

A case is `<name>.json`, which describes modules and calls, and often `<name>.npz`, which holds arrays. In descriptions,
plain JSON stands for itself and an object with one of these keys is special:

| tag                                  | meaning                                                                   |
|--------------------------------------|---------------------------------------------------------------------------|
| `{"$module": path, "kwargs": {}}`    | an instance, made now                                                     |
| `{"$factory": path, "kwargs": {}}`   | a function; each call makes the nested values anew and returns an instance |
| `{"$call": path, "args", "kwargs"}`  | the result of calling a function now                                      |
| `{"$ref": path}`                     | the object itself                                                         |
| `{"$dtype": name}`                   | a dtype                                                                   |
| `{"$tuple": []}`                     | a tuple                                                                   |
| `{"$array": key}`                    | a recorded array: an input, or the output of an earlier call              |
| `{"$same": i}`                       | in an argument list: the very object that argument i is                   |
| `{"$ones": shape, "dtype": name}`    | an array of ones                                                          |
"""

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

_FOLDER = pathlib.Path(__file__).parent / "flaxformer"

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case."""

    description: Mapping[str, Any]
    arrays: Arrays = dataclasses.field(repr=False)

    @property
    def tolerance(self) -> float:
        """How far an output may be off, absolutely; also relatively, in float32."""
        return self.description.get("tolerance", 1e-5)

    def tree(self, prefix: str) -> Any:
        """The recorded arrays below `prefix`, as nested dicts."""
        return traverse_util.unflatten_dict(self.flat(prefix), sep="/")

    def flat(self, prefix: str) -> dict[str, np.ndarray]:
        """The recorded arrays below `prefix`, by the rest of their path."""
        prefix += "/"
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}


@functools.cache
def _descriptions() -> Mapping[str, Mapping[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(_FOLDER.glob("*.json"))}


def groups() -> set[str]:
    """The groups that the recorded cases fall into."""
    return {description["group"] for description in _descriptions().values()}


def names(*wanted: str) -> list[str]:
    """The cases of the groups `wanted`, in alphabetical order."""
    assert set(wanted) <= groups(), f"no such groups: {set(wanted) - groups()}"
    return [name for name, description in _descriptions().items() if description["group"] in wanted]


def load(name: str) -> Case:
    """The case `name` with its arrays."""
    path = _FOLDER / f"{name}.npz"
    arrays = {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    return Case(_descriptions()[name], arrays)


def resolve(path: str) -> Any:
    """The object at a dotted path, which may lead through a class."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if end == 1 or error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise ModuleNotFoundError(path)


def build(value: Any, arrays: Arrays | None = None) -> Any:
    """The value that `value` describes."""
    if isinstance(value, list):
        return build_list(value, arrays)
    if not isinstance(value, dict):
        return value
    for tag, builder in _BUILDERS.items():
        if tag in value:
            return builder(value, arrays or {})
    return {key: build(item, arrays) for key, item in value.items()}


def build_list(values: Sequence[Any], arrays: Arrays | None = None) -> list[Any]:
    """The values of an argument list, where one may stand for an earlier one."""
    built: list[Any] = []
    for value in values:
        same = isinstance(value, dict) and "$same" in value
        built.append(built[value["$same"]] if same else build(value, arrays))
    return built


def _factory(value: Mapping[str, Any], arrays: Arrays) -> Callable[..., Any]:
    def make(*args: Any, **keywords: Any) -> Any:
        return resolve(value["$factory"])(*args, **(build(value.get("kwargs", {}), arrays) | keywords))

    return make


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any], Arrays], Any]] = {
    "$module": lambda v, arrays: resolve(v["$module"])(**build(v.get("kwargs", {}), arrays)),
    "$factory": _factory,
    "$call": lambda v, arrays: resolve(v["$call"])(
        *build_list(v.get("args", []), arrays), **build(v.get("kwargs", {}), arrays)
    ),
    "$ref": lambda v, _: resolve(v["$ref"]),
    "$dtype": lambda v, _: jnp.dtype(v["$dtype"]),
    "$tuple": lambda v, arrays: tuple(build_list(v["$tuple"], arrays)),
    "$array": lambda v, arrays: jnp.asarray(arrays[v["$array"]]),
    "$ones": lambda v, _: jnp.ones(v["$ones"], v["dtype"]),
}
