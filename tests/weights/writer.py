"""T5X's forms of a checkpoint, written byte for byte by hand: what the readers are held to.

Nothing of the library, of flax's serialization or of tensorstore is used.
"""

import gzip
import itertools
import json
import math

import msgpack
import numpy as np

NAMES = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "uint16": "<u2", "bfloat16": "bfloat16"}


def packed(array):
    """An array as flax puts it into a msgpack document: extension 1 with shape, type name and bytes."""
    array = np.asarray(array)
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def packed_scalar(value):
    """A NumPy scalar: extension 3."""
    value = np.asarray(value)
    return msgpack.ExtType(3, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))


def packed_in_pieces(array, pieces):
    """An array above flax's limit for one piece: a dict of flat pieces."""
    array = np.asarray(array)
    parts = np.array_split(array.reshape(-1), pieces)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {str(i): packed(part) for i, part in enumerate(parts)},
    }


def zarr(folder, array, chunks=None, compress=lambda data: gzip.compress(data, 1), header=True, **changes):
    """A zarr folder; `changes` go into `.zarray`."""
    array = np.asarray(array)
    chunks = list(array.shape if chunks is None else chunks)
    described = {
        "chunks": chunks,
        "compressor": {"id": "gzip", "level": 1},
        "dimension_separator": ".",
        "dtype": NAMES[array.dtype.name],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    } | changes
    folder.mkdir(parents=True)
    if header:
        (folder / ".zarray").write_text(json.dumps(described))
    counts = [math.ceil(size / chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    for at in itertools.product(*map(range, counts)):
        whole = np.zeros(chunks, array.dtype)
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, chunks, strict=True))
        part = array[place]
        whole[tuple(slice(0, size) for size in part.shape)] = part
        (folder / (".".join(map(str, at)) or "0")).write_bytes(compress(whole.tobytes()))


def spec(name, array, chunks=None, driver="file", **kvstore):
    """What stands for an array's folder in a document of T5X's own form."""
    array = np.asarray(array)
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": driver, "path": f"{name}/", **kvstore},
        "metadata": {
            "chunks": list(array.shape if chunks is None else chunks),
            "compressor": {"id": "gzip", "level": 1},
            "shape": list(array.shape),
        },
    }


def native(folder, state, apart=lambda name: name.startswith("target/"), version=3, header=True, driver="file"):
    """A checkpoint of T5X's own form: arrays whose name is `apart` as folders, the others in the document."""
    folder.mkdir(parents=True)

    def write(node, keys):
        if isinstance(node, dict):
            return {key: write(value, (*keys, key)) for key, value in node.items()}
        if not isinstance(node, np.ndarray | np.generic):
            return node
        if not apart("/".join(keys)):
            return packed(node)
        name = ".".join(keys)
        zarr(folder / name, node, header=header)
        extra = {"bucket": "t5x-dummy-bucket"} if driver == "gcs" else {}
        return spec(name, node, driver=driver, **extra)

    document(folder / "checkpoint", {"version": version, "optimizer": write(state, ())})
    return folder


def document(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgpack.packb(content, use_bin_type=True))
    return path


def early_orbax(folder, optimizer, **options):
    """A checkpoint of T5X's early orbax form."""
    folder.mkdir(parents=True)

    def write(node, keys):
        if isinstance(node, dict):
            return {key: write(value, (*keys, key)) for key, value in node.items()}
        name = ".".join(keys)
        zarr(folder / name, node, **options)
        return f"PLACEHOLDER://{name}"

    content = {"_optimizer": write(optimizer, ("_optimizer",)), "flax_mutables": {}, "params_axes": {}}
    document(folder / "checkpoint", content)
    return folder
