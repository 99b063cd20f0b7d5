"""Writing T5X's own form, so that T5X and its tools read it.

Parameters, and the optimizer's statistics of a parameter's shape (`v`, `m`), are folders; everything small stands in
the document. A checkpoint is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.documents import VERSION
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.finding import DOCUMENT
from flaxformer.weights.zarr import write_array

State = Mapping[str, Any]
Report = Callable[[str, int], None]


def save_t5x_checkpoint(
    folder: str | os.PathLike,
    state: State,
    step: int | None = None,
    *,
    dtype: Any = None,
    report: Report = lambda name, nbytes: None,
) -> pathlib.Path:
    """Writes `folder/checkpoint_<step>/` in T5X's own form, array by array.

    Args:
      folder: of the model; made if needed.
      state: `{"target": ..., "state": {"step": ..., "param_states": ...}}`, and `flax_mutables`; the parameters alone
        are enough. Leaves are arrays of any kind, stored ones too.
      step: the checkpoint's step; `state/step`, or 0, when None.
      dtype: of the floating-point parameters; the optimizer's state keeps its own.
      report: called with the name and the bytes of each array that is written.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: a `ValueError`, when it exists, for a state without parameters and for a float16 or other type
        that T5X does not save; and for a source that cannot be read. Then nothing is left behind.
    """
    state, step = _complete(state, step)
    if dtype is not None and jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise CheckpointError(f"dtype is {dtype!r}; expected 'float32', 'bfloat16' or None, which T5X reads.")
    with unfinished(pathlib.Path(folder) / f"checkpoint_{step}") as temporary:
        temporary.mkdir(parents=True)
        flat = traverse_util.flatten_dict(state, keep_empty_nodes=True)
        leaves = {path: _write(temporary, path, leaf, dtype, report) for path, leaf in flat.items()}
        document = {"version": VERSION, "optimizer": traverse_util.unflatten_dict(leaves)}
        (temporary / DOCUMENT).write_bytes(serialization.msgpack_serialize(document))
    return pathlib.Path(folder) / f"checkpoint_{step}"


def _complete(state: State, step: int | None) -> tuple[dict[str, Any], int]:
    if not isinstance(state.get("target"), Mapping):
        raise CheckpointError(
            f"the state has {', '.join(state) or 'nothing'}; expected parameters under 'target'. "
            "Pass {'target': params}."
        )
    rest = dict(state.get("state", {}))
    if step is None:
        step = int(np.asarray(rest.get("step", 0)))
    rest["step"] = np.asarray(step, np.int32)
    return {**state, "state": rest}, step


@contextlib.contextmanager
def unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to it at the end; removed when something goes wrong.

    Raises:
      CheckpointError: a `ValueError`, when `path` exists.
    """
    if path.exists():
        raise CheckpointError(f"{path} exists; expected a new place. Choose another, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{int(time.time())}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _write(folder: pathlib.Path, path: tuple[str, ...], leaf: Any, dtype: Any, report: Report) -> Any:
    """Writes one leaf; returns what stands for it in the document."""
    if leaf is traverse_util.empty_node or leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    array = leaf.read() if isinstance(leaf, StoredArray) else np.asarray(leaf)
    if path[0] == "target" and dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(dtype)
    report("/".join(path), array.nbytes)
    if not _apart(path, array):
        return array
    name = ".".join(path)
    layout = write_array(folder / name, array)
    kept = {key: value for key, value in layout.document().items() if key in ("chunks", "compressor", "shape")}
    kvstore = {"driver": "file", "path": f"{name}/"}
    return {"driver": "zarr", "dtype": array.dtype.name, "kvstore": kvstore, "metadata": kept}


def _apart(path: tuple[str, ...], array: np.ndarray) -> bool:
    """Whether T5X gives the array a folder: those that it may partition."""
    if path[0] == "state":
        return path[-1] in ("v", "m") and array.size > 1
    return array.size > 0
