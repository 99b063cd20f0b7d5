"""Parameters for a model: read from a checkpoint, checked against the model, laid out as it is, put in place."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.t5x.checkpointing_util import make_from_save_format_fn
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.assignment import AssignmentMap, apply_assignment_map
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.loading import cast_floats, load_t5x_checkpoint

Params = dict[str, Any]
_SHORT = 4  # tokens
_TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "inputs")


def restore_params(
    model: nn.Module,
    path: str | os.PathLike,
    step: int | None = None,
    *,
    assignment_map: AssignmentMap = (),
    layouts: Sequence[Callable[[Params], Params]] = (),
    fallback: Mapping[str, Any] | None = None,
    strict: bool = True,
    dtype: Any = "float32",
    shardings: Any = None,
    batch: Mapping[str, Any] | None = None,
    like: Params | None = None,
) -> Params:
    """The parameters of `model` from a T5X checkpoint.

    Everything is compared before anything is read. Arrays are then read one at a time, with `shardings` each device's
    part only, so that no more than one array is in memory besides the result.

    Args:
      model: the Linen module.
      path: see `find_checkpoint`.
      step: see `find_checkpoint`.
      assignment_map: see `flaxformer.weights.assignment`; names start with `target/`.
      layouts: functions of the parameter tree, in order, for a model laid out otherwise than the checkpoint; for
        example `[split_relative_bias, stack_layers]`.
      fallback: fresh parameters for what the checkpoint does not have; without, all must be there.
      strict: refuse entries that the model does not have; else they are left out.
      dtype: of floating-point parameters; as stored when None.
      shardings: one sharding, or a tree of them like the parameters; the default device when None.
      batch: what the model is called with, if it is neither called with token ids nor has `example_inputs`.
      like: the model's parameters or their shapes, where they are known already.

    Returns:
      Nested dicts of `jax.Array`.

    Raises:
      CheckpointError: a `ValueError` that lists every missing, unexpected and mis-shaped parameter, or names the file
        and the array that cannot be read.
    """
    remap = [make_from_save_format_fn(model)] if isinstance(model, ParameterRemappable) else []
    target = load_t5x_checkpoint(path, step, remap, lazy_parameters=True)["target"]
    for change in layouts:
        target = change(target)
    expected = abstract_params(model, batch) if like is None else like
    if assignment_map:
        target = apply_assignment_map({"target": target}, {"target": expected}, assignment_map).get("target", {})
    if dtype is not None:
        target = cast_floats(target, dtype)
    found = traverse_util.flatten_dict(target, sep="/")
    wanted = traverse_util.flatten_dict(dict(expected), sep="/")
    fresh = traverse_util.flatten_dict(dict(fallback or {}), sep="/")
    _compare(path, wanted, found, fresh, strict)
    places = _places(shardings, wanted)
    return traverse_util.unflatten_dict(
        {name: _place(found[name] if name in found else fresh[name], places[name]) for name in wanted}, sep="/"
    )


def abstract_params(model: nn.Module, batch: Mapping[str, Any] | None = None) -> Params:
    """Shapes and dtypes of the parameters of `model`, found by tracing.

    Args:
      model: a Linen module.
      batch: keywords that it is called with. By default one short example, as its `example_inputs` says; for models
        without that method, token ids.

    Raises:
      ValueError: when the model does not say what it is called with, it is not token ids, and no batch is given.
    """
    signature = inspect.signature(type(model).__call__).parameters
    if batch is None:
        batch = _example(model) or {name: np.ones((1, _SHORT), np.int32) for name in signature if name in _TOKENS}
        if not batch:
            raise ValueError(
                f"{type(model).__name__} is called with {', '.join(list(signature)[1:]) or 'nothing'}; expected some "
                f"of {', '.join(_TOKENS)}. Pass batch={{argument: array}}, shapes of what it is called with."
            )
    options: dict[str, Any] = {"enable_dropout": False} if "enable_dropout" in signature else {}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), **batch, **options))["params"]


def _example(model: Any) -> dict[str, np.ndarray]:
    shapes = model.example_inputs(_SHORT) if hasattr(model, "example_inputs") else {}
    return {name: np.ones(shape.shape, shape.dtype) for name, shape in shapes.items()}


def _compare(
    path: object, wanted: Mapping[str, Any], found: Mapping[str, Any], fresh: Mapping[str, Any], strict: bool
) -> None:
    """Refuses what does not fit, all at once."""
    missing = sorted(wanted.keys() - found.keys() - fresh.keys())
    unexpected = sorted(found.keys() - wanted.keys()) if strict else []
    sources = {**fresh, **found}
    problems = [f"missing {name} {_shape(wanted[name])}" for name in missing]
    problems += [f"unexpected {name} {_shape(found[name])}" for name in unexpected]
    problems += [
        f"{name} is {_shape(sources[name])}, expected {_shape(wanted[name])}"
        for name in sorted(wanted.keys() & sources.keys())
        if np.shape(sources[name]) != np.shape(wanted[name])
    ]
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} does not fit the model; expected the same names and shapes. {_hint(wanted, found)}"
            "The differences:\n  " + "\n  ".join(problems)
        )


def _hint(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Which function of `layouts` is probably missing."""
    for stack in ("encoder", "decoder"):
        listed, stacked, shared = f"{stack}/layers_0/", f"{stack}/{stack}/", f"{stack}/relpos_bias/"
        has, needs = (lambda part, names=names: any(n.startswith(part) for n in names) for names in (found, wanted))
        if has(listed) and needs(stacked):
            extra = "split_relative_bias, " if has(shared) else ""
            return f"Its layers are a list and the model's are scanned: pass layouts=[{extra}stack_layers]. "
        if has(stacked) and needs(listed):
            return "Its layers are stacked and the model's are a list: pass layouts=[unstack_layers]. "
        if has(shared) and needs(f"{stack}/layers_0/relpos_bias"):
            return "Its layers share a relative bias: pass layouts=[split_relative_bias]. "
        if has(f"{stack}/layers_0/relpos_bias") and needs(shared):
            return "Its layers have a relative bias each: pass layouts=[share_relative_bias]. "
    return "Use the model's own configuration, an assignment_map, fallback=... or strict=False. "


def _shape(array: Any) -> str:
    return str(list(np.shape(array)))


def _places(shardings: Any, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(wanted, shardings)
    places = traverse_util.flatten_dict(dict(shardings), sep="/")
    if places.keys() != wanted.keys():
        differ = sorted(places.keys() ^ wanted.keys())
        raise CheckpointError(f"shardings differs from the parameters in {differ[:10]}; expected the same names.")
    return places


def _place(array: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if not isinstance(array, StoredArray):
        return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)
    return jnp.asarray(array.read()) if sharding is None else array.on(sharding)
