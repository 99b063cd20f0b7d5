"""Scan, rematerialisation and vmap over *factories* of modules whose `__call__` has keyword arguments.

JAX's and Linen's transformations count arguments by position. Here a module's arguments are put into one canonical
positional order first, so that callers go on using keywords:

    make_layer = factory_remat(make_layer, static_argnums=(3,))     # argument 3 of __call__, self not counted
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from flax.core.meta import global_mesh_defined
from flax.linen import module as linen_module
from flax.linen import partitioning
from flax.linen.partitioning import core_remat_static, remat
from flax.typing import In as ScanIn
from flax.typing import Out as ScanOut

from flaxformer.types import Array

__all__ = [
    "ScanIn",
    "ScanOut",
    "apply_transform_to_module_factory",
    "canonicalize_arguments",
    "canonicalized_class_transform",
    "core_remat_static",
    "factory_remat",
    "factory_scan",
    "factory_vmap",
    "global_mesh_defined",
    "inner_scan_spmd",
    "remat",
    "with_sharding_constraint",
]


def canonicalize_arguments(orig_fn: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]:
    """Splits a function in one that takes every argument by position, and one that puts arguments in that order.

    Args:
      orig_fn: any function. Its `*args` become one tuple, its `**kwargs` one dict.

    Returns:
      `(positional_fn, to_args)` with `positional_fn(*to_args(*args, **kwargs)) == orig_fn(*args, **kwargs)`.

    >>> positional_fn, to_args = canonicalize_arguments(lambda x, *, scale=2: x * scale)
    >>> to_args(3), positional_fn(3, 5)
    ((3, 2), 15)
    """
    signature = inspect.signature(orig_fn)
    parameters = tuple(signature.parameters.values())

    @functools.wraps(orig_fn)
    def positional_fn(*values: Any) -> Any:
        if len(values) != len(parameters):
            raise ValueError(
                f"{len(values)} arguments came for {[p.name for p in parameters]}; expected {len(parameters)}, "
                "every parameter by position. Make them with the second function of canonicalize_arguments."
            )
        args, kwargs = [], {}
        for parameter, value in zip(parameters, values, strict=True):
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return orig_fn(*args, **kwargs)

    def to_args(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments[parameter.name] for parameter in parameters)

    return positional_fn, to_args


def canonicalized_class_transform(
    trafo: Callable[..., Any], clz: type[nn.Module], *t_args: Any, **t_kwargs: Any
) -> type[nn.Module]:
    """A subclass of `clz` whose `__call__` is transformed, and may still be called with keywords.

    Args:
      trafo: Linen transformation of a module class, for example `flax.linen.remat`.
      clz: the module class.
      *t_args: for the transformation.
      **t_kwargs: for the transformation; argument numbers count `__call__`'s parameters without `self`.
    """
    positional_fn, to_args = canonicalize_arguments(clz.__call__)
    positional = type(clz.__name__, (clz,), {"__call__": positional_fn, "__module__": clz.__module__})
    transformed = trafo(positional, *t_args, **t_kwargs)

    @functools.wraps(clz.__call__)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return transformed.__call__(*to_args(self, *args, **kwargs))

    name = trafo.__name__.capitalize() + clz.__name__
    return type(name, (transformed,), {"__call__": call, "__module__": clz.__module__})


@contextmanager
def _detached() -> Iterator[None]:
    """Modules made in here have no parent."""
    stack = linen_module._context.module_stack
    stack.append(None)
    try:
        yield
    finally:
        stack.pop()


def apply_transform_to_module_factory(
    trafo: Callable[..., Any], factory: Callable[[], nn.Module], *args: Any, **kwargs: Any
) -> Callable[[], nn.Module]:
    """A factory of modules like those of `factory`, transformed.

    Args:
      trafo: Linen transformation of a module class.
      factory: makes a module; it is called once for every new module, to learn its class and fields.
      *args: for the transformation.
      **kwargs: for the transformation.
    """

    def new_factory() -> nn.Module:
        with _detached():
            module = factory()
        fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init and f.name != "parent"}
        return canonicalized_class_transform(trafo, type(module), *args, **kwargs)(**fields)

    return new_factory


factory_remat = functools.partial(apply_transform_to_module_factory, partitioning.remat)
factory_scan = functools.partial(apply_transform_to_module_factory, partitioning.scan_with_axes)
factory_vmap = functools.partial(apply_transform_to_module_factory, nn.vmap)


def with_sharding_constraint(x: Array, axis_resources: Any) -> Array:
    """`jax.lax.with_sharding_constraint`; identity on CPU or without a mesh."""
    if jax.default_backend() == "cpu" or not global_mesh_defined():
        return x
    return jax.lax.with_sharding_constraint(x, axis_resources)


def inner_scan_spmd(annotation_tree: Any, scan_axis: int) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """A `data_transform` for scans over layers that shards each layer's parameters inside the loop.

    Args:
      annotation_tree: tree of `PartitionSpec` of the stacked parameters, or None.
      scan_axis: the axis along which they are stacked; it is dropped from the specs.

    Returns:
      `(variable_groups, rng_groups) -> (variable_groups, rng_groups)`, or None for None.
    """
    if annotation_tree is None:
        return None

    def is_spec(x: Any) -> bool:
        return isinstance(x, jax.sharding.PartitionSpec)

    def without_scan_axis(spec: Any) -> Any:
        return jax.sharding.PartitionSpec(*(name for axis, name in enumerate(spec) if axis != scan_axis))

    specs = jax.tree.map(without_scan_axis, annotation_tree, is_leaf=is_spec)
    structure = jax.tree.structure(specs, is_leaf=is_spec)

    def annotated(group: Any) -> Any:
        if isinstance(group, tuple | list):
            return type(group)(annotated(item) for item in group)
        if isinstance(group, Mapping) and jax.tree.structure(group.get("params")) == structure:
            params = jax.tree.map(
                lambda spec, x: with_sharding_constraint(x, spec), specs, group["params"], is_leaf=is_spec
            )
            make: Any = type(group)  # dict or FrozenDict
            return make({**group, "params": params})
        return group

    def annotate(variable_groups: Any, rng_groups: Any) -> tuple[Any, Any]:
        return annotated(variable_groups), rng_groups

    return annotate
