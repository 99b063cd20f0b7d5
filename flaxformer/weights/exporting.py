"""Writing a state in other forms than T5X's own: safetensors and T5X's present form by orbax."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import traverse_util

from flaxformer.extras import require
from flaxformer.training import integrity
from flaxformer.weights.arrays import StoredArray, map_stored
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.writing import unfinished

Report = Callable[[str, int], None]
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def save_safetensors(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] = MappingProxyType({"format": "flax"}),
    report: Report = lambda name, nbytes: None,
) -> pathlib.Path:
    """Writes parameters as one safetensors file, with one array in memory at a time.

    Args:
      path: of the new file.
      params: nested dicts; names in the file are paths joined by dots, `encoder.layers_0.mlp.wo.kernel`.
      metadata: strings that go into the header; readers look at `format`.
      report: called with the name and the bytes of each array that is written.

    Raises:
      CheckpointError: a `ValueError`, when the file exists, for types that safetensors does not have, and for a source
        that cannot be read. Then nothing is left behind.

    Source: the format's description, https://github.com/huggingface/safetensors#format.
    """
    path = pathlib.Path(path)
    flat = traverse_util.flatten_dict(dict(params), sep=".")
    arrays = {name: StoredArray.of(leaf, name) for name, leaf in sorted(flat.items())}
    with unfinished(path) as temporary, temporary.open("wb") as file:
        header = _header(arrays, metadata)
        file.write(struct.pack("<Q", len(header)) + header)
        for name, array in arrays.items():
            report(name, array.nbytes)
            file.write(np.ascontiguousarray(array.read()).tobytes())
    return path


def _header(arrays: Mapping[str, StoredArray], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES:
            raise CheckpointError(
                f"{name} has dtype {array.dtype}; expected one of {', '.join(_TYPES)}, which safetensors can hold."
            )
        offsets = [offset, offset := offset + array.nbytes]
        entries[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def save_orbax_checkpoint(
    folder: str | os.PathLike,
    state: Mapping[str, Any],
    step: int | None = None,
    *,
    report: Report = lambda name, nbytes: None,
) -> pathlib.Path:
    """Writes `folder/checkpoint_<step>/` in T5X's present form, which is also that of this library's checkpoints.

    The whole state is in memory while orbax writes it.

    Args:
      folder: of the model; made if needed.
      state: as `save_t5x_checkpoint` takes it.
      step: the checkpoint's step; `state/step`, or 0, when None.
      report: called with the name and the bytes of each array that is read.

    Raises:
      CheckpointError: a `ValueError`, when the checkpoint exists and for a source that cannot be read. Then nothing is
        left behind.
    """
    orbax = require("orbax.checkpoint", extra="train")
    rest = dict(state.get("state", {}))
    step = int(np.asarray(rest.get("step", 0))) if step is None else step
    rest["step"] = np.asarray(step, np.int32)
    path = pathlib.Path(folder).absolute() / f"checkpoint_{step}"

    def read(array: StoredArray) -> np.ndarray:
        report(array.name, array.nbytes)
        return array.read()

    with unfinished(path) as temporary:
        tree = map_stored(read, {**state, "state": rest})
        flat = {keys: leaf for keys, leaf in traverse_util.flatten_dict(tree).items() if leaf is not None}
        handlers = {"state": orbax.PyTreeCheckpointHandler(), "dataset": orbax.JsonCheckpointHandler()}
        save = orbax.args.PyTreeSave(traverse_util.unflatten_dict(flat))
        items = orbax.args.Composite(state=save, dataset=orbax.args.JsonSave({}))
        with orbax.Checkpointer(orbax.CompositeCheckpointHandler(**handlers)) as checkpointer:
            checkpointer.save(temporary, items)
        integrity.seal(temporary)
    return path
