"""Writes `pytorch_model.bin` as torch does, zipped and in the older form, without torch."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


@contextlib.contextmanager
def _torch():
    """Modules of torch's names, so that the pickle refers to them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        del sys.modules["torch"], sys.modules["torch._utils"]


def _pickler(torch, file):
    class Tensor(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, _Storage):
                kind = getattr(torch, _STORAGES[value.array.dtype.name])
                return ("storage", kind, value.key, "cpu", value.array.size)

        def reducer_override(self, value):
            if not isinstance(value, _Tensor):
                return NotImplemented
            array, storage = value.array, value.storage
            strides = tuple(stride // array.itemsize for stride in array.strides)
            arguments = (storage, 0, array.shape, strides, False, collections.OrderedDict())
            return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments

    return Tensor(file, protocol=2)


class _Tensor:
    def __init__(self, key, array):
        # A transposed view keeps the storage of its base, as torch does.
        base = array if array.flags.c_contiguous else array.T
        self.array, self.storage = array, _Storage(key, base)


def _described(arrays):
    tensors = {name: _Tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    return collections.OrderedDict(tensors), [tensor.storage for tensor in tensors.values()]


def zipped(path, arrays):
    """The form of torch 1.6 and later."""
    tensors, storages = _described(arrays)
    with _torch() as torch, zipfile.ZipFile(path, "w") as archive:
        text = io.BytesIO()
        _pickler(torch, text).dump(tensors)
        archive.writestr("archive/data.pkl", text.getvalue())
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def old(path, arrays):
    """The older form."""
    tensors, storages = _described(arrays)
    with _torch() as torch, path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, file, protocol=2)
        _pickler(torch, file).dump(tensors)
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write(struct.pack("<q", storage.array.size) + storage.array.tobytes())


def numbers(*shape, dtype="float32"):
    """Distinct numbers."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
