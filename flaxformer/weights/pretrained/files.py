"""The weights of a Hugging Face folder, by name, left on disk until they are read.

Glossary:

* *theirs*: a name, a shape or an array as the folder has it. *ours*: as this library's model has it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from flaxformer.weights.arrays import Index, StoredArray
from flaxformer.weights.errors import CheckpointError

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(f"{name}.index.json" for name in SINGLE)
Weights = dict[str, StoredArray]


@dataclasses.dataclass(frozen=True, eq=False)
class FileArray(StoredArray):
    """A stored array that is cheap to read in blocks along one axis, the outermost in the file."""

    block_axis: int = 0

    @classmethod
    def at(cls, path: pathlib.Path, name: str, offset: int, shape: tuple[int, ...], dtype: Any) -> FileArray:
        """The array whose numbers lie in C order at `offset` of the file `path`."""
        dtype = np.dtype(dtype)
        label = f"{name} in {path}"
        row = math.prod(shape[1:]) * dtype.itemsize

        def read(index: Index) -> np.ndarray:
            rows = index[0] if index else slice(0, 1)
            count = rows.stop - rows.start
            with path.open("rb") as file:
                file.seek(offset + rows.start * row)
                data = file.read(count * row)
            if len(data) != count * row:
                raise damaged_file(path, f"it ends inside {name!r}")
            block = np.frombuffer(data, dtype).reshape((count, *shape[1:]) if index else ())
            return block[(slice(None), *index[1:])] if index else block

        return cls(shape, dtype, read, label)


def damaged_file(path: pathlib.Path, reason: object) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(f"{path} cannot be read: {reason}. Expected a complete file: copy or download it again.")


def open_weights(folder: str | os.PathLike) -> Weights:
    """The weights in a folder: `model.safetensors` or `pytorch_model.bin`, whole or in pieces with their index.

    Raises:
      CheckpointError: a `ValueError` that names the file that is missing, damaged, or holds more than numbers.
    """
    place = pathlib.Path(folder)
    if not place.is_dir():
        raise CheckpointError(f"{place} is no folder; expected one with config.json and {' or '.join(SINGLE)}.")
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (place / single).is_file():
            return open_file(place / single)
        if (place / index).is_file():
            return _open_pieces(place, place / index)
    raise CheckpointError(
        f"{place} holds no weights; expected one of {', '.join((*SINGLE, *INDEXES))}. "
        f"It holds: {', '.join(sorted(path.name for path in place.iterdir())) or 'nothing'}."
    )


def open_file(path: pathlib.Path) -> Weights:
    """The weights in one file."""
    from flaxformer.weights.pretrained import pickled, safetensors  # they need this module

    return (safetensors if path.suffix == ".safetensors" else pickled).open_file(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      CheckpointError: a `ValueError`, naming the file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a Hugging Face folder with {path.name}.") from None
    except (ValueError, OSError) as error:
        raise damaged_file(path, f"it is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise damaged_file(path, f"it holds a {type(document).__name__} instead of an object")
    return document


def _open_pieces(folder: pathlib.Path, index: pathlib.Path) -> Weights:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise damaged_file(index, "it has no 'weight_map'")
    names = sorted(set(where.values()))
    if any(pathlib.PurePosixPath(name).name != name for name in names):
        raise damaged_file(index, f"it points out of the folder: {names}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} names {', '.join(missing)}, not in the folder; expected all. Download them.")
    pieces = {name: open_file(folder / name) for name in names}
    absent = sorted(weight for weight, name in where.items() if weight not in pieces[name])
    if absent:
        raise damaged_file(index, f"its files lack {', '.join(absent[:5])}")
    return {weight: pieces[name][weight] for weight, name in where.items()}
