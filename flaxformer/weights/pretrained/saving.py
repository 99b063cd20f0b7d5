"""`save_pretrained`: a model and its variables as a folder that Hugging Face reads."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxformer.configs import Configuration, Configured
from flaxformer.types import DType
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.exporting import save_safetensors
from flaxformer.weights.layouts import share_relative_bias, unstack_layers
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.family import find_family
from flaxformer.weights.pretrained.loading import CONFIG
from flaxformer.weights.pretrained.rules import to_theirs
from flaxformer.weights.writing import unfinished

Report = Callable[[str, int], None]


def save_pretrained(
    model: nn.Module,
    variables: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: DType | None = None,
    config: Mapping[str, Any] | None = None,
    report: Report = lambda name, nbytes: None,
) -> pathlib.Path:
    """Writes `folder` with `config.json` and `model.safetensors`.

    Args:
      model: what `load_pretrained` returned, or a clone of it.
      variables: with the collection 'params'.
      folder: a new one; it appears when all of it is written.
      dtype: of floating-point weights; as they are when None.
      config: the content of config.json, for a model that was built otherwise; the published one when None.
      report: called with the name and the bytes of each array that is written.

    Raises:
      CheckpointError: a `ValueError`, when the folder exists, the model does not know what it was published as, or has
        parameters that Hugging Face's form has no name for. Then nothing is left behind.
    """
    published = _published(model) if config is None else config
    params = jax.tree.map(_stored, dict(variables["params"]))
    return write_folder(published, params, folder, dtype=dtype, report=report)


def write_folder(
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: DType | None = None,
    report: Report = lambda name, nbytes: None,
) -> pathlib.Path:
    """As `save_pretrained`, for stored arrays and the content of config.json."""
    attributes = Attributes(config, CONFIG)
    family = find_family(attributes)
    table = family.table(attributes)
    flat: dict[Any, Any] = traverse_util.flatten_dict(_listed(dict(params), family.shares_bias), sep="/")
    if dtype is not None:
        flat = {n: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for n, a in flat.items()}
    weights = family.written(to_theirs(table, flat), attributes)
    kinds = {array.dtype.name for array in weights.values() if jnp.issubdtype(array.dtype, jnp.floating)}
    said = {"torch_dtype" if "torch_dtype" in config else "dtype": kinds.pop()} if len(kinds) == 1 else {}
    with unfinished(pathlib.Path(folder)) as temporary:
        temporary.mkdir(parents=True)
        text = json.dumps({**config, **said}, indent=2, sort_keys=True, ensure_ascii=False)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_safetensors(temporary / "model.safetensors", weights, metadata={"format": "pt"}, report=report)
    return pathlib.Path(folder)


def _published(model: nn.Module) -> Mapping[str, Any]:
    for value in vars(model).values():
        if isinstance(value, Configured):
            configuration: Configuration = value.configuration
            if "PUBLISHED" in configuration.macros:
                return configuration.build("PUBLISHED")
    raise CheckpointError(
        f"this {type(model).__name__} does not know which published configuration it has; expected one that "
        "load_pretrained returned. Pass config={...}, the content of its config.json."
    )


def _stored(leaf: Any) -> StoredArray:
    return StoredArray.of(leaf if isinstance(leaf, StoredArray) else np.asarray(leaf))


def _listed(params: dict[str, Any], shares_bias: bool) -> dict[str, Any]:
    """The parameters with a list of layers, and the relative bias where the published form has it."""
    if not any(stack in params.get(stack, {}) for stack in ("encoder", "decoder")):
        return params
    params = unstack_layers(params)
    return share_relative_bias(params) if shares_bias else params
