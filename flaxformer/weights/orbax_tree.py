"""T5X's present form by orbax, read by tensorstore alone: `_METADATA` names the arrays, a key-value store holds them.

This is also the form of this library's own checkpoints.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util

from flaxformer.training import integrity
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.errors import CheckpointError, damaged
from flaxformer.weights.zarr import open_array, open_by_tensorstore

METADATA = "_METADATA"
ITEM = "state"


def item_of(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with the arrays of the checkpoint in `folder`: itself or its item `state`; None without one."""
    return next((place for place in (folder / ITEM, folder) if (place / METADATA).is_file()), None)


def read_orbax(folder: pathlib.Path) -> dict[str, Any]:
    """The state in a checkpoint folder, with stored arrays as leaves.

    Raises:
      CheckpointError: a `ValueError`, for missing, changed or foreign files.
    """
    found = integrity.damage(folder)
    if found:
        raise damaged(folder, ", ".join(found), "checkpoint")
    item = item_of(folder)
    if item is None:
        raise damaged(folder, f"it has no {METADATA}, nor {ITEM}/{METADATA}", "checkpoint")
    try:
        entries = list(_entries(json.loads((item / METADATA).read_bytes())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(item / METADATA, f"{type(error).__name__}: {error}", "index") from error
    state = traverse_util.unflatten_dict({keys: _array(item, keys, driver) for keys, driver in entries})
    if not isinstance(state.get("target"), Mapping):
        raise CheckpointError(
            f"{folder} holds {', '.join(state) or 'nothing'}; expected parameters under 'target', as T5X stores them."
        )
    return state


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Keys and driver of every leaf; None for a leaf that is None."""
    driver = "zarr3" if document.get("use_zarr3") else "zarr"
    for entry in document["tree_metadata"].values():
        keys = tuple(str(part["key"]) for part in entry["key_metadata"])
        value = entry.get("value_metadata", {})
        yield keys, None if value.get("skip_deserialize") or value.get("value_type") == "None" else driver


def _array(item: pathlib.Path, keys: tuple[str, ...], driver: str | None) -> StoredArray | None:
    if driver is None:
        return None
    folder = ".".join(keys)
    name = f"{'/'.join(keys)} in {item}"
    if not (item / "manifest.ocdbt").is_file():
        if driver == "zarr":
            return open_array(item / folder, "/".join(keys))
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{item.absolute() / folder}/"}}
        return open_by_tensorstore(spec, name)
    kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item.absolute()}/"}, "path": f"{folder}/"}
    return open_by_tensorstore({"driver": driver, "kvstore": kvstore}, name)
