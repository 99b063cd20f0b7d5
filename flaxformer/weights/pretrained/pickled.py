"""`pytorch_model.bin`, read without torch and without executing anything.

Such a file is a pickle whose arrays refer to *storages*, runs of numbers of one type. Here the pickle may name nothing
but what describes arrays; every name is answered by a stand-in of this module, and any other is refused. The numbers
stay in the file: in the zip form (torch 1.6 and later) as uncompressed members, in the older form one after another
behind the pickles.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.pretrained.files import FileArray, Weights, damaged_file

_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


class _Forbidden(ValueError):
    """The pickle names something that is no array."""


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _StorageType(np.dtype(kind)) for name, kind in _TYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Answers names from a fixed table and storages by their description."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Forbidden(f"it names {module}.{name}, which is no array; nothing of it was run")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Forbidden(f"it refers to a {kind!r}")
        return _Storage(str(key), storage_type.dtype, int(size))


def open_file(path: pathlib.Path) -> Weights:
    """The arrays of a file by name.

    Raises:
      CheckpointError: a `ValueError` that names the file, when it is damaged or holds anything but arrays.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _open_zip(path, archive)
        with path.open("rb") as file:
            return _open_old(path, file)
    except (ValueError, KeyError, TypeError, EOFError, IndexError, AttributeError, struct.error) as error:
        raise damaged_file(path, str(error).removeprefix(f"{path} ") or type(error).__name__) from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError) as error:
        raise damaged_file(path, f"{type(error).__name__}: {error}") from error


def _open_zip(path: pathlib.Path, archive: zipfile.ZipFile) -> Weights:
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    tensors = _state(_Reader(io.BytesIO(archive.read(members["data.pkl"]))).load())
    order = archive.read(members["byteorder"]) if "byteorder" in members else b"little"
    if order != b"little":
        raise ValueError("its numbers are big-endian")

    def place(storage: _Storage) -> int:
        member = members[f"data/{storage.key}"]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size < storage.size * storage.dtype.itemsize:
            raise ValueError(f"its storage {storage.key} is compressed or too short")
        with path.open("rb") as file:
            file.seek(member.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return member.header_offset + 30 + name + extra

    return _arrays(path, tensors, place)


def _open_old(path: pathlib.Path, file: BinaryIO) -> Weights:
    if _Reader(file).load() != _OLD_MAGIC:
        raise ValueError("it is no torch file")
    _Reader(file).load()  # the protocol's version
    if not _Reader(file).load().get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    tensors = _state(_Reader(file).load())
    kinds = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    keys, places = _Reader(file).load(), {}
    size = path.stat().st_size
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        file.seek(count * kinds[key].dtype.itemsize, io.SEEK_CUR)
        if file.tell() > size:
            raise ValueError(f"it was cut off inside storage {key}")
    return _arrays(path, tensors, lambda storage: places[storage.key])


def _state(loaded: Any) -> dict[str, _Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, _Tensor) for value in loaded.values()):
        raise ValueError("it holds no mapping of names to arrays")
    return dict(loaded)


def _arrays(path: pathlib.Path, tensors: Mapping[str, _Tensor], place: Callable[[_Storage], int]) -> Weights:
    return {name: _array(path, name, tensor, place(tensor.storage)) for name, tensor in tensors.items()}


def _array(path: pathlib.Path, name: str, tensor: _Tensor, start: int) -> StoredArray:
    dtype, shape = tensor.storage.dtype, tensor.shape
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, tensor.strides, strict=True)) + 1
    if min((tensor.offset, *tensor.strides, *shape), default=0) < 0 or (0 not in shape and last > tensor.storage.size):
        raise ValueError(f"{name!r} lies outside of its storage")
    dense = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if all(size == 1 or a == b for size, a, b in zip(shape, tensor.strides, dense, strict=True)):
        return FileArray.at(path, name, start + tensor.offset * dtype.itemsize, shape, dtype)
    whole = FileArray.at(path, name, start, (tensor.storage.size,), dtype)

    def read(index: Any) -> np.ndarray:
        numbers, strides = whole.read()[tensor.offset :], [stride * dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, shape, strides)[index]

    return StoredArray(shape, dtype, read, whole.name)
