"""`load_pretrained`: a Hugging Face folder as a Linen module and its variables, without torch or transformers."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxformer import configs
from flaxformer.types import DType
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.layouts import split_relative_bias, stack_layers
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.family import Family, bindings, find_family
from flaxformer.weights.pretrained.files import Weights, open_weights, read_json
from flaxformer.weights.pretrained.rules import to_ours
from flaxformer.weights.restoring import abstract_params

CONFIG = "config.json"
Report = Callable[[str, int], None]
_BLOCK = 16 * 2**20  # bytes that are read at once
_ALIGNMENT = 64  # of memory that XLA's CPU client takes over without a copy


@dataclasses.dataclass(frozen=True)
class Folder:
    """An opened folder: what it is, and where its numbers lie."""

    path: pathlib.Path
    attributes: Attributes
    family: Family
    weights: Weights
    statements: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Folder:
        """Reads the configuration and the names of the weights, and refuses what is not known.

        Raises:
          CheckpointError: a `ValueError`.
        """
        path = pathlib.Path(folder)
        return cls.of(Attributes(read_json(path / CONFIG), str(path / CONFIG)), open_weights(path), path)

    @classmethod
    def of(cls, attributes: Attributes, weights: Weights, path: pathlib.Path) -> Folder:
        """What a configuration and weights describe, wherever they are from."""
        family = find_family(attributes)
        weights = family.renamed(weights)
        statements = bindings(family.settings(attributes, weights))
        family.table(attributes)
        attributes.check_all_read()
        kept = f"PUBLISHED = {dict(attributes.values)!r}"
        return cls(path, attributes, family, weights, (*statements, kept))

    def model(self, dtype: DType | None = None, scan_layers: bool = False) -> nn.Module:
        """The Linen module, from the family's gin file."""
        statements = [*self.statements, f"ACTIVATION_DTYPE = {jnp.dtype(dtype or 'float32').name!r}"]
        files = [self.family.gin, *([self.family.scanned] if scan_layers else [])]
        return configs.read(files, statements, macros=["PUBLISHED"]).build("ARCHITECTURE")

    def parameters(self, model: nn.Module) -> dict[str, Any]:
        """The parameters of the model with a list of layers, as stored arrays."""
        wanted = traverse_util.flatten_dict(dict(abstract_params(model)), sep="/")
        table = self.family.table(self.attributes)
        found = to_ours(table, self.weights, wanted, self.family.unused, self.path)
        return traverse_util.unflatten_dict(found, sep="/")


def model_of(config: Mapping[str, Any], dtype: DType | None = None) -> nn.Module:
    """The Linen module that the content of a config.json describes, without weights.

    Raises:
      CheckpointError: a `ValueError`, for a configuration that is not known or not implemented.
    """
    return Folder.of(Attributes(config, CONFIG), {}, pathlib.Path(CONFIG)).model(dtype)


def load_pretrained(
    folder: str | os.PathLike,
    *,
    dtype: DType | None = None,
    param_dtype: DType | None = "float32",
    scan_layers: bool = False,
    sharding: Any = None,
    report: Report = lambda name, nbytes: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A published model and its weights.

        model, variables = load_pretrained("bert-base-uncased")
        outputs = model.apply(variables, ids, encoder_valid=mask, token_types=types, enable_dropout=False)

    Args:
      folder: with `config.json` and `model.safetensors` or `pytorch_model.bin`, whole or in pieces.
      dtype: what the model computes in; float32 when None.
      param_dtype: what floating-point parameters are kept in; as in the file when None.
      scan_layers: build the layers as one scan over stacked parameters.
      sharding: one for all parameters, or a tree of them like the parameters; the default device when None.
      report: called with the name and the bytes of each array when it is read.

    Returns:
      The module, and `{"params": ...}`. Arrays are read one after another, in blocks: besides the result no more than
      one block is in memory.

    Raises:
      CheckpointError: a `ValueError`: for a configuration that is not known or not implemented, by attribute; for
        weights that are missing, unexpected or of another shape, all of them; for a damaged file, by name.
    """
    opened = Folder.open(folder)
    params = opened.parameters(opened.model(dtype))
    model = opened.model(dtype, scan_layers)
    if scan_layers:
        params = _stacked(params)
    flat: dict[Any, Any] = traverse_util.flatten_dict(params, sep="/")
    places = _places(sharding, flat)
    placed = {}
    for name, array in flat.items():
        report(name, array.nbytes)
        if param_dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
            array = _cast(array, param_dtype)
        placed[name] = _place(array, places[name])
    return model, {"params": traverse_util.unflatten_dict(placed, sep="/")}


def _stacked(params: dict[str, Any]) -> dict[str, Any]:
    if any("relpos_bias" in params.get(stack, {}) for stack in ("encoder", "decoder")):
        params = split_relative_bias(params)
    return stack_layers(params)


def _places(sharding: Any, flat: Mapping[str, Any]) -> Mapping[str, Any]:
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return dict.fromkeys(flat, sharding)
    places = traverse_util.flatten_dict(dict(sharding), sep="/")
    if places.keys() != flat.keys():
        differ = sorted(places.keys() ^ flat.keys())
        raise ValueError(f"sharding differs from the parameters in {differ[:10]}; expected the same names.")
    return places


def _cast(array: StoredArray, dtype: DType) -> StoredArray:
    """`array`, to be cast when it is read, in blocks along the same axis."""
    dtype = jnp.dtype(dtype)
    return dataclasses.replace(array, dtype=dtype, source=lambda index: array.read(index).astype(dtype))


def _place(array: StoredArray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    return jnp.asarray(read_in_blocks(array)) if sharding is None else array.on(sharding)


def read_in_blocks(array: StoredArray) -> np.ndarray:
    """All numbers, read in blocks into memory that a device on the CPU can take over as it is."""
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    target = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    if array.nbytes <= _BLOCK or not array.ndim:
        target[...] = array.read()
        return target
    axis = getattr(array, "block_axis", 0)
    count = max(1, _BLOCK * array.shape[axis] // array.nbytes)
    for first in range(0, array.shape[axis], count):
        index = [slice(0, size) for size in array.shape]
        index[axis] = slice(first, min(first + count, array.shape[axis]))
        target[tuple(index)] = array.read(index)
    return target
