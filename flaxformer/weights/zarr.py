"""Zarr version 2 arrays in folders, as T5X writes them: `.zarray` (JSON) and one file per chunk.

Chunks compressed by gzip or zlib, or not at all, are read and written here, with their checksums verified; anything
else (zstd, blosc, filters) is left to tensorstore.

Source: the Zarr version 2 specification, https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxformer.extras import require
from flaxformer.weights.arrays import Index, StoredArray, in_threads
from flaxformer.weights.errors import CheckpointError, damaged

HEADER = ".zarray"
_CHUNK_BYTES = 64 * 2**20
_GZIP = 32 + zlib.MAX_WBITS  # accepts the headers of gzip and of zlib


@dataclasses.dataclass(frozen=True)
class Layout:
    """What `.zarray` says.

    Attributes:
      shape: of the array.
      chunks: shape of one chunk; those at the upper end may reach over the array.
      dtype: name of the type as NumPy has it, or `bfloat16`.
      compressor: `{"id": ...}`, or None.
      separator: between the numbers in a chunk's name.
      fill_value: of chunks that are not there; without one, all must be.
      plain: whether order and filters are the usual ones.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    compressor: Mapping[str, Any] | None
    separator: str = "."
    fill_value: Any = None
    plain: bool = True

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Layout:
        """From the keys of `.zarray`; only `shape`, `chunks` and `dtype` must be there.

        Raises:
          ValueError: for a document that is none.
        """
        try:
            shape, chunks = (tuple(int(size) for size in document[key]) for key in ("shape", "chunks"))
            dtype, compressor = jnp.dtype(document["dtype"]), document.get("compressor")
            plain = document.get("order", "C") == "C" and not document.get("filters")
            separator, fill_value = document.get("dimension_separator", "."), document.get("fill_value")
        except (KeyError, TypeError) as error:
            raise ValueError(f"its description is not one of a zarr array ({type(error).__name__}: {error})") from error
        if len(chunks) != len(shape) or any(size < 1 for size in chunks):
            raise ValueError(f"its description has chunks {list(chunks)} for the shape {list(shape)}")
        return cls(shape, chunks, dtype, compressor, separator, fill_value, plain)

    @property
    def simple(self) -> bool:
        """Whether this module can read it."""
        return self.plain and (self.compressor is None or self.compressor.get("id") in ("gzip", "zlib"))

    def document(self) -> dict[str, Any]:
        """The keys of `.zarray`."""
        return {
            "chunks": list(self.chunks),
            "compressor": self.compressor,
            "dimension_separator": self.separator,
            "dtype": "bfloat16" if self.dtype == jnp.bfloat16 else self.dtype.str,
            "fill_value": self.fill_value,
            "filters": None,
            "order": "C",
            "shape": list(self.shape),
            "zarr_format": 2,
        }


def open_array(folder: pathlib.Path, name: str, described: Mapping[str, Any] | None = None) -> StoredArray:
    """The array in `folder`.

    Args:
      folder: of its files.
      name: of the array in the checkpoint, for messages.
      described: keys as in `.zarray` from elsewhere, which serve where that file is missing.

    Raises:
      CheckpointError: a `ValueError`, when the folder or all description is missing, or the two disagree.
    """
    where = f"{name} in {folder}"
    if not folder.is_dir():
        raise damaged(where, "its folder is missing")
    try:
        layout = _layout(folder, described)
    except (ValueError, OSError) as error:
        raise damaged(where, error) from error
    if not layout.simple:
        files = _chunk_names(layout, _whole(layout.shape)) if layout.fill_value is None else []
        missing = [file for file, _ in files if not (folder / file).is_file()]
        if missing:
            raise damaged(where, f"its chunk {missing[0]} is missing")
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}}
        return open_by_tensorstore(spec | {"metadata": layout.document()}, where, assume_metadata=True)
    return StoredArray(layout.shape, layout.dtype, lambda index: _read(folder, layout, index, where), where)


def _layout(folder: pathlib.Path, described: Mapping[str, Any] | None) -> Layout:
    header = folder / HEADER
    if not header.is_file():
        if described is None:
            raise ValueError(f"{HEADER} is missing, and nothing else tells its shape")
        return Layout.parse(described)
    layout = Layout.parse(json.loads(header.read_bytes()))
    if described is not None and tuple(described.get("shape", layout.shape)) != layout.shape:
        raise ValueError(f"{HEADER} says shape {list(layout.shape)}, the checkpoint's index {described['shape']}")
    return layout


def _whole(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, size) for size in shape)


def _chunk_names(layout: Layout, index: Index) -> list[tuple[str, tuple[int, ...]]]:
    """File and position of every chunk that `index` touches."""
    ranges = [range(part.start // size, -(-part.stop // size)) for part, size in zip(index, layout.chunks, strict=True)]
    return [(layout.separator.join(map(str, at)) or "0", at) for at in itertools.product(*ranges)]


def _read(folder: pathlib.Path, layout: Layout, index: Index, where: str) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in index], layout.dtype)

    def fill(chunk: tuple[str, tuple[int, ...]]) -> None:
        file, at = chunk
        first = [number * size for number, size in zip(at, layout.chunks, strict=True)]
        low = [max(start, part.start) for start, part in zip(first, index, strict=True)]
        ends = zip(first, layout.chunks, index, strict=True)
        high = [min(start + size, part.stop) for start, size, part in ends]
        source = tuple(slice(lo - start, hi - start) for lo, hi, start in zip(low, high, first, strict=True))
        target = tuple(slice(lo - part.start, hi - part.start) for lo, hi, part in zip(low, high, index, strict=True))
        out[target] = _chunk(folder / file, layout, where)[source]

    in_threads(fill, _chunk_names(layout, index))
    return out


def _chunk(path: pathlib.Path, layout: Layout, where: str) -> np.ndarray:
    try:
        if not path.is_file():
            if layout.fill_value is None:
                raise ValueError("it is missing")
            return np.full(layout.chunks, layout.fill_value, layout.dtype)
        data = path.read_bytes()
        data = data if layout.compressor is None else _inflate(data)
        expected = math.prod(layout.chunks) * layout.dtype.itemsize
        if len(data) != expected:
            raise ValueError(f"it holds {len(data)} bytes where {list(layout.chunks)} {layout.dtype} takes {expected}")
    except (ValueError, OSError, zlib.error) as error:
        raise damaged(where, f"chunk {path.name}: {error}") from error
    return np.frombuffer(data, layout.dtype).reshape(layout.chunks)


def _inflate(data: bytes) -> bytes:
    """Decompresses whole streams only, and verifies their checksums."""
    out = []
    while data:
        stream = zlib.decompressobj(_GZIP)
        out.append(stream.decompress(data))
        if not stream.eof:
            raise ValueError("its compressed stream is truncated")
        data = stream.unused_data
    return b"".join(out)


def open_by_tensorstore(spec: Mapping[str, Any], where: str, **options: Any) -> StoredArray:
    """An array that tensorstore opens and reads.

    Args:
      spec: of tensorstore.
      where: file and array, for messages.
      **options: of `tensorstore.open`.

    Raises:
      CheckpointError: a `ValueError`, when it cannot be opened; `read` raises it too.
    """
    store = _guarded(lambda: require("tensorstore", extra="weights").open(dict(spec), open=True, **options), where)
    dtype = np.dtype(store.dtype.numpy_dtype)
    return StoredArray(tuple(store.shape), dtype, lambda index: _guarded(store[index].read, where), where)


def _guarded(ask: Any, where: str) -> Any:
    try:
        return ask().result()
    except ImportError:
        raise
    except Exception as error:  # tensorstore's own types differ from driver to driver
        raise damaged(where, error) from error


def chunk_shape(shape: tuple[int, ...], itemsize: int, limit: int = _CHUNK_BYTES) -> tuple[int, ...]:
    """The shape of chunks of at most `limit` bytes that divide `shape` evenly, T5X's rule.

    The largest axis is lowered to its next smaller divisor until a chunk is small enough.

    >>> chunk_shape((32128, 512), 4), chunk_shape((32128, 512), 4, limit=2**20)
    ((32128, 512), (502, 512))
    """
    chunks = list(shape)
    while math.prod(chunks) * itemsize > limit and max(chunks, default=1) > 1:
        axis = chunks.index(max(chunks))
        chunks[axis] = next(size for size in range(chunks[axis] - 1, 0, -1) if shape[axis] % size == 0)
    return tuple(chunks)


def write_array(folder: pathlib.Path, array: np.ndarray) -> Layout:
    """Writes `array` into a new folder; returns how it is laid out.

    Raises:
      CheckpointError: a `ValueError`, for an array of size zero, which has no chunks.
    """
    if array.size == 0:
        raise CheckpointError(f"{folder.name} has shape {list(array.shape)}; expected at least one number. Drop it.")
    chunks = chunk_shape(array.shape, array.dtype.itemsize)
    layout = Layout(array.shape, chunks, array.dtype, {"id": "gzip", "level": 1})
    folder.mkdir(parents=True)
    (folder / HEADER).write_text(json.dumps(layout.document(), separators=(",", ":")))

    def write(chunk: tuple[str, tuple[int, ...]]) -> None:
        file, at = chunk
        part = array[tuple(slice(i * size, (i + 1) * size) for i, size in zip(at, chunks, strict=True))]
        (folder / file).write_bytes(gzip.compress(part.tobytes(), compresslevel=1, mtime=0))

    in_threads(write, _chunk_names(layout, _whole(array.shape)))
    return layout
