"""Checkpoints on disk: written whole or not at all, and checked before they are used.

A folder holds `checkpoint_<step>/` directories, each with the items

* `state`: `target` (the parameters) and `state` (`step`, `opt_state`, `dropout_key`), by orbax;
* `dataset`: JSON, where the training data goes on,

and `files.json`, sizes and checksums of all these files.

A checkpoint is written next to its place and renamed into it, so a directory of that name is complete; what a killed
process left behind is removed by the next save. Orbax comes with `pip install 'flaxformer[train]'`.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from flaxformer.extras import require
from flaxformer.training import integrity
from flaxformer.training.state import TrainState

_NAME = re.compile(r"checkpoint_(\d+)")
_UNREADABLE = (
    "the checkpoint {path} cannot be read ({reason}); expected a complete one. "
    "Remove the directory to go on from an earlier checkpoint, or restore it from a copy."
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as asked."""


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: the train state.
      dataset: what was saved with it, for example `{"step": 1000}`.
    """

    state: TrainState
    dataset: dict[str, Any]


def steps(folder: str | os.PathLike) -> list[int]:
    """The steps of the complete checkpoints in `folder`, ascending."""
    folder = pathlib.Path(folder)
    names = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name)


def path_of(folder: str | os.PathLike, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` is or will be."""
    return pathlib.Path(folder).absolute() / f"checkpoint_{step}"


def save(
    folder: str | os.PathLike, state: TrainState, dataset: Mapping[str, Any] | None = None, keep: int | None = None
) -> pathlib.Path:
    """Writes the checkpoint of `state.step`; does nothing when there is one.

    Args:
      folder: made if needed.
      state: what to save.
      dataset: any JSON document: where the training data goes on.
      keep: how many of the latest checkpoints stay; all when None.

    Returns:
      The checkpoint's directory.

    Raises:
      ValueError: when fewer than one should stay.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}; expected at least 1, or None to keep all.")
    path = path_of(folder, int(state.step))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for unfinished in path.parent.glob("checkpoint_*.tmp*"):
            shutil.rmtree(unfinished)
        temporary = path.with_name(f"{path.name}.tmp")
        args = require("orbax.checkpoint", extra="train").args
        items = args.Composite(state=args.PyTreeSave(_tree(state)), dataset=args.JsonSave(dict(dataset or {})))
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary, items)
        integrity.seal(temporary)
        os.replace(temporary, path)
    for step in steps(folder)[:-keep] if keep is not None else []:
        _remove(path_of(folder, step))
    return path


def _remove(path: pathlib.Path) -> None:
    """Removes a checkpoint, which stops being one at once."""
    doomed = path.with_name(f"{path.name}.tmp-removed")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def restore(folder: str | os.PathLike, like: TrainState, step: int | None = None) -> Restored:
    """Reads a checkpoint into the form of `like`.

    Args:
      folder: as given to `save`.
      like: a state (or its `jax.eval_shape`) with the expected parameters; arrays come back where its arrays are.
      step: which checkpoint; the latest when None.

    Raises:
      CheckpointError: a `ValueError`, when there is no such checkpoint, when it cannot be read, and when what it holds
        is not what `like` expects; then all missing, extra and mis-shaped entries are listed.
    """
    path = _find(folder, step)
    args = require("orbax.checkpoint", extra="train").args
    expected = traverse_util.flatten_dict(_tree(like), sep="/")
    with _checkpointer() as checkpointer:
        saved = _read(path, lambda: checkpointer.metadata(path).item_metadata.state.tree)
        _compare(path, expected, traverse_util.flatten_dict(saved, sep="/"))
        items = args.Composite(state=_everything(saved), dataset=args.JsonRestore())
        restored = _read(path, lambda: checkpointer.restore(path, args=items))
    return Restored(_state(restored.state, like), dict(restored.dataset))


def restore_params(folder: str | os.PathLike, step: int | None = None) -> Any:
    """The parameters of a checkpoint, as NumPy arrays in a nested dict, whatever optimizer trained them.

    Args:
      folder: as given to `save`.
      step: which checkpoint; the latest when None.
    """
    path = _find(folder, step)
    args = require("orbax.checkpoint", extra="train").args
    with _checkpointer() as checkpointer:
        saved = _read(path, lambda: checkpointer.metadata(path).item_metadata.state.tree)
        items = args.Composite(state=_everything(saved))
        restored = _read(path, lambda: checkpointer.restore(path, args=items))
    return restored.state["target"]


def _checkpointer() -> Any:
    orbax = require("orbax.checkpoint", extra="train")
    handlers = {"state": orbax.PyTreeCheckpointHandler(), "dataset": orbax.JsonCheckpointHandler()}
    return orbax.Checkpointer(orbax.CompositeCheckpointHandler(**handlers))


def _everything(saved: Any) -> Any:
    """What to tell orbax to get every entry as a NumPy array."""
    orbax = require("orbax.checkpoint", extra="train")
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    how = jax.tree.map(lambda x: orbax.RestoreArgs(restore_type=np.ndarray), saved)
    return orbax.args.PyTreeRestore(arrays, restore_args=how)


def _find(folder: str | os.PathLike, step: int | None) -> pathlib.Path:
    found = steps(folder)
    if not found or step is not None and step not in found:
        wanted = "any checkpoint" if step is None else f"a checkpoint of step {step}"
        there = f"checkpoints of the steps {', '.join(map(str, found))}" if found else "no checkpoint"
        raise CheckpointError(f"{folder} holds {there}; expected {wanted}. Correct the folder or the step.")
    path = path_of(folder, found[-1] if step is None else step)
    damage = integrity.damage(path)
    if damage:
        raise CheckpointError(_UNREADABLE.format(path=path, reason=", ".join(damage)))
    return path


def _read(path: pathlib.Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # of any type: orbax, tensorstore, json and zstd each have their own
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise CheckpointError(_UNREADABLE.format(path=path, reason=reason)) from error


def _compare(path: pathlib.Path, expected: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose entries are not those expected."""
    problems = [f"missing {name} {_describe(expected[name])}" for name in sorted(expected.keys() - saved.keys())]
    problems += [f"extra {name} {_describe(saved[name])}" for name in sorted(saved.keys() - expected.keys())]
    problems += [
        f"{name} is {_describe(saved[name])}, expected {_describe(expected[name])}"
        for name in sorted(expected.keys() & saved.keys())
        if _describe(saved[name]) != _describe(expected[name])
    ]
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} does not fit this model and optimizer; expected the same entries with the same "
            "shapes. Use the configuration that it was trained with, or another folder. The differences:\n  "
            + "\n  ".join(problems)
        )


def _describe(array: Any) -> str:
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _tree(state: TrainState) -> dict[str, Any]:
    """`state` as nested dicts of plain arrays (or their shapes), without empty nodes."""
    plain = jax.tree.map(lambda x: _key_data(x) if _is_key(x) else x, serialization.to_state_dict(state))
    target = plain.pop("params")
    flat = traverse_util.flatten_dict({"target": target, "state": plain})
    return traverse_util.unflatten_dict({path: x for path, x in flat.items() if x is not None})


def _key_data(key: Any) -> Any:
    return (
        jax.eval_shape(jax.random.key_data, key) if isinstance(key, jax.ShapeDtypeStruct) else jax.random.key_data(key)
    )


def _state(tree: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `_tree`."""
    flat = traverse_util.flatten_dict({"params": tree["target"], **tree["state"]})
    form = traverse_util.flatten_dict(serialization.to_state_dict(like), keep_empty_nodes=True)
    filled = {path: flat.get(path, empty) for path, empty in form.items()}
    state = serialization.from_state_dict(like, traverse_util.unflatten_dict(filled))
    return jax.tree.map(_like, state, like)


def _like(x: Any, like: Any) -> Any:
    x = jnp.array(x)  # a copy that jax owns, so that it can be donated
    if _is_key(like):
        return jax.random.wrap_key_data(x, impl=_key_impl(like))
    return jax.device_put(x, like.sharding) if isinstance(like, jax.Array) and like.committed else x


def _key_impl(key: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)  # `key` may be a shape only
    return found[0]
