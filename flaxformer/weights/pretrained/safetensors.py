"""Safetensors files, read without the package: a length, a JSON header, and the numbers.

Source: the format's description, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import pathlib
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxformer.weights.pretrained.files import FileArray, Weights, damaged_file

_LONGEST_HEADER = 100_000_000  # as the package limits it
TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


def open_file(path: pathlib.Path) -> Weights:
    """The arrays of a file by name; nothing but the header is read.

    Raises:
      CheckpointError: a `ValueError` that names the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise damaged_file(path, f"its header would have {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _array(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise damaged_file(path, f"its header is broken ({type(error).__name__}: {error})") from error


def _array(path: pathlib.Path, name: str, entry: dict[str, Any], start: int, size: int) -> FileArray:
    if entry["dtype"] not in TYPES:
        raise damaged_file(path, f"{name!r} has the type {entry['dtype']!r}; known are {', '.join(TYPES)}")
    shape, dtype = tuple(map(int, entry["shape"])), np.dtype(TYPES[entry["dtype"]])
    first, last = map(int, entry["data_offsets"])
    if last - first != math.prod(shape) * dtype.itemsize or min(first, *shape, 0) < 0:
        raise damaged_file(path, f"{name!r} of shape {list(shape)} has {last - first} bytes")
    if start + last > size:
        raise damaged_file(path, f"it was cut off: {name!r} ends at byte {start + last} and the file at {size}")
    return FileArray.at(path, name, start + first, shape, dtype)
