"""T5X's index files: one msgpack document per checkpoint, with the small arrays in it and references to the large ones.

Two forms have one: T5X's own (a reference is a tensorstore spec, a dict with `driver` and `kvstore`) and its early form
by orbax (a reference is a string `PLACEHOLDER://<name>`). A reference names a folder beside the document; where it says
that the folder was *written* is of no interest.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax.numpy as jnp
import msgpack  # comes with flax
import numpy as np
from flax import serialization

from flaxformer.weights.arrays import StoredArray, map_stored
from flaxformer.weights.errors import CheckpointError, damaged
from flaxformer.weights.zarr import open_array

PLACEHOLDER = "PLACEHOLDER://"
VERSION = 3
_CHUNKED = "__msgpack_chunked_array__"  # flax's mark of an array above its limit for one piece

State = dict[str, Any]


def read_native(path: pathlib.Path) -> State:
    """The state in a checkpoint of T5X's own form, with stored arrays as leaves.

    Args:
      path: the msgpack document.

    Returns:
      `{"target": ..., "state": ...}`, and `flax_mutables` where there are any.

    Raises:
      CheckpointError: a `ValueError` naming the file and the array.
    """
    document = _unpack(path)
    if "version" not in document:
        return _with_target(path, _leaves(document, path, (), _native_leaf))
    version = document["version"]
    if not isinstance(version, int) or version not in (2, VERSION):
        raise CheckpointError(
            f"{path} says version {version!r} of T5X's checkpoints; expected 2 or {VERSION}. "
            "Load and save it once with the T5X that wrote it."
        )
    state = _leaves(document.get("optimizer"), path, (), _native_leaf)
    return _with_target(path, map_stored(_bits_to_bfloat16, state) if version < VERSION else state)


def read_early_orbax(path: pathlib.Path) -> State:
    """The state in a checkpoint of T5X's early orbax form; as `read_native`."""
    document = _unpack(path)
    kept = {name: document[name] for name in ("flax_mutables",) if document.get(name)}
    optimizer = document.get("_optimizer")
    if not isinstance(optimizer, Mapping):
        raise damaged(path, "it has no entry '_optimizer'", "index")
    leaves = _leaves({"_optimizer": optimizer, **kept}, path, (), _orbax_leaf)
    return _with_target(path, {**leaves.pop("_optimizer"), **leaves})


def holds_placeholders(path: pathlib.Path) -> bool:
    """Whether the document is of the early orbax form."""
    document = _unpack(path)
    return "_optimizer" in document and "optimizer" not in document and "version" not in document


def _unpack(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = msgpack.unpackb(path.read_bytes(), raw=False, strict_map_key=False)
    except Exception as error:  # msgpack's types have no common base but Exception
        reason = f"it is no msgpack document, or a truncated one ({type(error).__name__}: {error})"
        raise damaged(path, reason, "index") from error
    if not isinstance(document, dict):
        raise damaged(path, f"it holds a {type(document).__name__} instead of a checkpoint", "index")
    return document


def _with_target(path: pathlib.Path, state: Any) -> State:
    if not isinstance(state, dict) or not isinstance(state.get("target"), dict):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise damaged(path, f"it has no parameters (no mapping 'target'; it has {found or 'nothing'})", "index")
    return state


Leaf = Callable[[Any, pathlib.Path, str], Any]


def _leaves(node: Any, path: pathlib.Path, keys: tuple[str, ...], leaf: Leaf) -> Any:
    """The document's tree with every array and reference turned into a stored array."""
    if isinstance(node, dict) and _CHUNKED not in node and not _is_spec(node):
        return {str(key): _leaves(value, path, (*keys, str(key)), leaf) for key, value in node.items()}
    return leaf(node, path, "/".join(keys))


def _is_spec(node: Mapping[str, Any]) -> bool:
    return "driver" in node and "kvstore" in node


def _native_leaf(node: Any, path: pathlib.Path, name: str) -> Any:
    if not isinstance(node, dict) or _CHUNKED in node:
        return _inline(node, path, name)
    metadata = node.get("metadata")
    if node["driver"] != "zarr" or metadata is not None and not isinstance(metadata, Mapping):
        raise damaged(f"{name} in {path}", f"its reference has driver {node['driver']!r}; only 'zarr' is known")
    described = {"dtype": node.get("dtype"), **metadata} if metadata else None
    return open_array(_folder(node, path, name), name, described)


def _folder(node: Mapping[str, Any], path: pathlib.Path, name: str) -> pathlib.Path:
    """The array's folder beside the document: the last part of the path in the reference."""
    kvstore = node["kvstore"]
    written = kvstore.get("path") if isinstance(kvstore, Mapping) else None
    written = written or node.get("path")
    last = pathlib.PurePosixPath(written).name if isinstance(written, str) else ""
    if last in ("", ".."):
        raise damaged(f"{name} in {path}", f"its reference has the path {written!r}")
    return path.parent / last


def _orbax_leaf(node: Any, path: pathlib.Path, name: str) -> Any:
    if not isinstance(node, str) or not node.startswith(PLACEHOLDER):
        return _inline(node, path, name)
    last = node.removeprefix(PLACEHOLDER)
    if last in ("", "..") or "/" in last:
        raise damaged(f"{name} in {path}", f"its placeholder is {node!r}")
    return open_array(path.parent / last, name)


def _inline(node: Any, path: pathlib.Path, name: str) -> Any:
    """An array that stands in the document itself; numbers, strings and None stay as they are."""
    if not isinstance(node, dict | msgpack.ExtType):
        return node
    try:
        value = serialization.msgpack_restore(cast(bytes, msgpack.packb(node)))
    except Exception as error:  # from msgpack or NumPy
        raise damaged(f"{name} in {path}", f"{type(error).__name__}: {error}") from error
    if isinstance(value, np.ndarray | np.generic):
        return StoredArray.of(value, f"{name} in {path}")
    raise damaged(f"{name} in {path}", f"it is a {type(value).__name__} instead of an array")


def _bits_to_bfloat16(array: StoredArray) -> StoredArray:
    """Version 2 stored bfloat16 as the integers of its bits; no other array of T5X is uint16."""
    if array.dtype != np.uint16:
        return array
    bfloat16 = jnp.dtype(jnp.bfloat16)
    return StoredArray(array.shape, bfloat16, lambda index: array.read(index).view(bfloat16), array.name)
