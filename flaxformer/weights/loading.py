"""From a path to the state in a T5X checkpoint, whatever its form."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from flaxformer.architectures.common.param_remapping import METADATA_KEY, VERSION_KEY, filter_out_metadata
from flaxformer.weights import documents, finding, orbax_tree
from flaxformer.weights.arrays import StoredArray, read_all
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.finding import CheckpointType

State = dict[str, Any]
Transformation = Callable[..., State]


def load_t5x_checkpoint(
    path: str | os.PathLike,
    step: int | None = None,
    state_transformation_fns: Sequence[Transformation] = (),
    remap: bool = True,
    restore_dtype: Any = None,
    lazy_parameters: bool = False,
) -> State:
    """The state in a checkpoint.

    Args:
      path: see `find_checkpoint`.
      step: see `find_checkpoint`.
      state_transformation_fns: called one after the other as `function(state, None)`, each returning the next state;
        for example `flaxformer.t5x.checkpointing_util.make_from_save_format_fn(model)`. The second argument, in T5X the
        state to fill, is None here: to rename with a model at hand use `restore_params`.
      remap: apply them and take the save format's versions out; without it, the state as it is stored.
      restore_dtype: of the floating-point parameters; as stored when None.
      lazy_parameters: leave every array on disk, as a `StoredArray`.

    Returns:
      `{"target": ..., "state": ...}` and what else the checkpoint has; NumPy arrays as leaves. Parameters saved alone
      have no `state/param_states`.

    Raises:
      CheckpointError: a `ValueError` that names the file and the array, for what is missing, truncated, changed or of
        another kind; and for layouts of a version that nobody here knows.
    """
    state = read_state(find := finding.find_checkpoint(path, step))
    if remap:
        for function in state_transformation_fns:
            state = function(state, None)
        state = without_versions(state, find)
    if restore_dtype is not None:
        state = {**state, "target": cast_floats(state["target"], restore_dtype)}
    return state if lazy_parameters else read_all(state)


def read_state(path: pathlib.Path) -> State:
    """The state of the checkpoint at `path`, as it is stored, with stored arrays as leaves."""
    kind = finding.detect_checkpoint_type(path)
    document = path / finding.DOCUMENT if path.is_dir() else path
    match kind:
        case CheckpointType.ORBAX:
            return orbax_tree.read_orbax(path if path.is_dir() else path.parent)
        case CheckpointType.ORBAX_EARLY:
            return documents.read_early_orbax(document)
        case CheckpointType.TENSORFLOW:
            raise CheckpointError(
                f"{path} is an index of TensorFlow; expected a checkpoint of T5X. "
                "Read it with flaxformer.param_conversion_util.load_tf_params."
            )
    return documents.read_native(document)


def without_versions(state: Mapping[str, Any], where: object) -> State:
    """`state` without the versions of the save format.

    Raises:
      CheckpointError: a `ValueError`, when one of them is not 0: such parameters have another layout.
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(state))
    found = {
        "/".join(map(str, keys[:-2])) or "the model": version
        for keys, version in flat.items()
        if keys[-2:] == (METADATA_KEY, VERSION_KEY)
    }
    unknown = [f"{name} has version {version!r}" for name, version in found.items() if int(version) != 0]
    if unknown:
        raise CheckpointError(
            f"{where}: {', '.join(unknown[:5])} of its layout; expected 0, which needs no remapping. "
            "Pass state_transformation_fns=[make_from_save_format_fn(model)] of flaxformer.t5x.checkpointing_util."
        )
    return {key: _without_metadata(value) for key, value in state.items()} if found else dict(state)


def _without_metadata(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return filter_out_metadata(tree)


def cast_floats(tree: Any, dtype: Any) -> Any:
    """`tree` with its floating-point arrays as `dtype`."""

    def cast(leaf: Any) -> Any:
        stored = StoredArray.of(leaf)
        if not jnp.issubdtype(stored.dtype, jnp.floating) or stored.dtype == jnp.dtype(dtype):
            return leaf
        return stored.astype(dtype) if isinstance(leaf, StoredArray) else leaf.astype(dtype)

    return map_leaves(cast, tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """`jax.tree.map` for nested dicts, keeping None."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    return None if tree is None else function(tree)
