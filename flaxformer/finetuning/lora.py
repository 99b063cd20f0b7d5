"""Low-rank adapters: a frozen kernel W plus a small trained product, `W + (alpha / rank) · A · B`.

They act on parameters and not on modules, so that every kernel of every model can have one, nothing in the model
changes, and what was trained is a small tree of its own.

Source: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685, section 4.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Float

from flaxformer.extras import require
from flaxformer.finetuning.paths import Params, chosen, flatten, unflatten
from flaxformer.types import Array, PRNGKey

Adapters = dict[str, dict[str, Array]]

_SETTINGS = "flaxformer.lora"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels get adapters, and how large these are.

        lora = LoRA([".*attention/(query|value)/kernel"], rank=8)
        adapters = lora.init(rng, variables)
        logits = model.apply({"params": lora.merge(params, adapters)}, tokens)    # in the loss, under jit and grad

    `merge` inside the loss costs rank multiply-adds per weight of a kernel, little beside a batch of more than a few
    hundred tokens; `params` stays as it is, and only `adapters` is differentiated.

    Attributes:
      patterns: regular expressions for the whole paths of kernels; see `flaxformer.finetuning.matching`.
      rank: of the product.
      alpha: the product is scaled by alpha / rank; None means `rank`, a scale of one.

    Raises:
      ValueError: for a rank below one.
    """

    patterns: Sequence[str]
    rank: int = 8
    alpha: float | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1. Published adapters have 4 to 64.")
        if not isinstance(self.patterns, str):
            object.__setattr__(self, "patterns", tuple(self.patterns))

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, rng: PRNGKey, variables: Mapping[str, Any]) -> Adapters:
        """New adapters, which change nothing yet: A is random, B is zero.

        Args:
          rng: for A, normal with variance 1 / rank.
          variables: with 'params'; and with 'params_axes' if kernels of more than two axes are to be adapted.

        Returns:
          `{path: {"a": [layers inputs rank], "b": [layers rank outputs]}}`, a tree for any optimizer; one layer where
          none are stacked.

        Raises:
          ValueError: for a pattern that matches nothing, and for parameters that are no kernels.
        """
        params, axes = flatten(variables["params"]), _axis_names(variables)
        paths = chosen(params, self.patterns)
        adapters = {}
        for path, key in zip(paths, jax.random.split(rng, len(paths)), strict=True):
            layers, inputs, outputs = _folded_shape(path, params[path], axes.get(path))
            a = jax.random.normal(key, (layers, inputs, self.rank), jnp.float32) / math.sqrt(self.rank)
            adapters[path] = {"a": a, "b": jnp.zeros((layers, self.rank, outputs), jnp.float32)}
        return adapters

    def merge(self, params: Params, adapters: Adapters) -> dict[str, Any]:
        """The parameters with the adapters' products added; `params` itself is left alone.

        Raises:
          ValueError: for adapters of other parameters.
        """
        return self._add(params, adapters, self.scale)

    def unmerge(self, params: Params, adapters: Adapters) -> dict[str, Any]:
        """Merged parameters without the adapters' products again, to the rounding of one addition."""
        return self._add(params, adapters, -self.scale)

    def _add(self, params: Params, adapters: Adapters, scale: float) -> dict[str, Any]:
        flat = flatten(params)
        foreign = sorted(set(adapters) - set(flat))
        if foreign:
            raise ValueError(
                f"there are adapters for {', '.join(foreign)}, which the parameters lack; expected adapters of this "
                "model. Were they trained with scanned layers, or for another size?"
            )
        for path, factors in adapters.items():
            flat[path] = _added(path, flat[path], factors, scale)
        return unflatten(flat)


def save_adapters(path: str | os.PathLike[str], lora: LoRA, adapters: Adapters) -> None:
    """Writes adapters and their settings as one safetensors file, whole or not at all."""
    numpy_format = require("safetensors.numpy", extra="weights")
    path = pathlib.Path(path)
    arrays = {f"{name}/{factor}": jax.device_get(x) for name, both in adapters.items() for factor, x in both.items()}
    settings = json.dumps({**dataclasses.asdict(lora), "patterns": list(lora.patterns)})
    unfinished = path.with_name(path.name + ".unfinished")
    numpy_format.save_file(arrays, unfinished, metadata={_SETTINGS: settings})
    unfinished.replace(path)


def load_adapters(path: str | os.PathLike[str]) -> tuple[LoRA, Adapters]:
    """What `save_adapters` wrote.

    Raises:
      ValueError: for a file of another kind, or a damaged one.
    """
    safetensors = require("safetensors", extra="weights")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            settings = (file.metadata() or {}).get(_SETTINGS)
            arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; expected a file of save_adapters. Copy it again.") from error
    if settings is None:
        raise ValueError(f"{path} says nothing of adapters; expected a file written by save_adapters.")
    adapters: Adapters = {}
    for name, x in arrays.items():
        kernel, factor = name.rsplit("/", 1)
        adapters.setdefault(kernel, {})[factor] = x
    return LoRA(**json.loads(settings)), adapters


def _axis_names(variables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if "params_axes" not in variables:
        return {}
    names: dict[str, Any] = flatten(unfreeze(partitioning.get_axis_names(variables["params_axes"])))
    return {path: tuple(axes) for path, axes in names.items()}


def _folded_shape(path: str, kernel: Array, axes: tuple[str, ...] | None) -> tuple[int, int, int]:
    """The kernel as matrices, one per stacked layer: `(layers, inputs, outputs)`.

    Kernels have their input axes first. Those of more than two axes belong to heads or to fused projections: either
    they read the model's width, one axis named `embed`, or they write it, one axis as well.
    """
    if axes is None and kernel.ndim != 2:
        raise ValueError(
            f"{path} has shape {kernel.shape} and no axis names; expected a matrix, or 'params_axes' among the "
            "variables, which say what its axes are. Pass all that model.init returned."
        )
    names, shape = list(axes or ("inputs", "outputs")), list(kernel.shape)
    if "layers" in names[:1] + names[2:]:
        raise ValueError(f"{path} has the axes {names}; expected stacked layers on axis 1. Use scan_axis=1.")
    layers = shape.pop(1) if "layers" in names else 1
    if len(shape) < 2:
        raise ValueError(f"{path} has shape {kernel.shape}; expected a kernel. Leave it out of the patterns.")
    inputs = 1 if len(shape) == 2 or names[0] == "embed" else len(shape) - 1
    return layers, math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _added(path: str, kernel: Array, factors: Mapping[str, Array], scale: float) -> Array:
    product: Float[Array, "L I O"] = scale * jnp.matmul(factors["a"], factors["b"], precision="highest")
    layers = product.shape[0]
    if product.size != kernel.size:
        raise ValueError(
            f"{path} has shape {kernel.shape}, its adapters fit {product.shape}; expected adapters of this model."
        )
    if layers > 1:  # stacked layers lie on axis 1
        rest = (kernel.shape[0], *kernel.shape[2:])
        return kernel + jnp.moveaxis(product.reshape(layers, *rest), 0, 1).astype(kernel.dtype)
    return kernel + product.reshape(kernel.shape).astype(kernel.dtype)
