"""Parameters that early flaxformer stored otherwise, in the layout of today's modules.

Heads stood apart in the kernels of some attention layers (`[E, H, D]` instead of `[E, H*D]`, the same numbers in the
same order), and under quantisation a kernel was stored as int8 numbers `qkernel` and their scale `qscale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxformer.weights.arrays import Index, StoredArray
from flaxformer.weights.errors import CheckpointError

Params = dict[str, Any]
_STACKS = ("encoder", "decoder")


def dequantize(params: Mapping[str, Any]) -> Params:
    """Kernels from int8 numbers and scales: `kernel = qkernel / qscale`, float32.

    Args:
      params: the whole tree.

    Raises:
      CheckpointError: a `ValueError`, when no kernel is stored so, or one lacks its scale.

    >>> stored = {"wo": {"qkernel": np.int8([[2, 4]]), "qscale": np.float32([[2, 8]])}}
    >>> dequantize(stored)["wo"]["kernel"].tolist()
    [[1.0, 0.5]]
    """
    found: list[str] = []

    def change(tree: Any, name: str) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        result = {key: change(value, f"{name}/{key}") for key, value in tree.items()}
        if "qkernel" in result:
            found.append(name)
            result["kernel"] = _divided(name, result.pop("qkernel"), result.pop("qscale", None))
        return result

    result = change(params, "")
    return _checked(result, found, "a kernel stored as `qkernel` and `qscale`")


def join_heads(params: Mapping[str, Any]) -> Params:
    """Attention kernels with heads joined, `[E, H*D]` and `[H*D, E]`, from those with heads apart.

    Args:
      params: the whole tree, with a list of layers.

    Raises:
      CheckpointError: a `ValueError`, when no kernel has heads apart, and for stacked layers, whose kernels have three
        axes anyway.
    """
    stacked = [name for name in _STACKS if isinstance(params.get(name), Mapping) and name in params[name]]
    if stacked:
        raise CheckpointError(f"the layers in {stacked[0]} are stacked; expected a list. Use unstack_layers first.")
    found: list[str] = []

    def change(tree: Any, name: str) -> Any:
        if isinstance(tree, Mapping):
            return {key: change(value, f"{name}/{key}") for key, value in tree.items()}
        *_, module, leaf = ("", *name.split("/"))
        if leaf != "kernel" or module not in ("query", "key", "value", "out") or np.ndim(tree) != 3:
            return tree
        found.append(name)
        first, *_, last = np.shape(tree)
        return _reshaped(tree, (math.prod(np.shape(tree)[:-1]), last) if module == "out" else (first, -1))

    result = change(params, "")
    return _checked(result, found, "an attention kernel of three axes")


def _checked(result: Params, found: list[str], wanted: str) -> Params:
    if not found:
        raise CheckpointError(f"the parameters have no such thing; expected {wanted}. Leave this step out.")
    return result


def _divided(name: str, kernel: Any, scale: Any) -> Any:
    if scale is None or np.ndim(scale) != np.ndim(kernel):
        raise CheckpointError(f"{name[1:]}/qkernel has no qscale of as many axes; expected one. Is it complete?")

    def read(index: Index) -> np.ndarray:
        parts = zip(index, np.shape(scale), strict=True)
        where = [slice(0, 1) if size == 1 else part for part, size in parts]
        numbers = StoredArray.of(kernel).read(index).astype(np.float32)
        return numbers / StoredArray.of(scale).read(where).astype(np.float32)

    return _like(kernel, StoredArray(tuple(np.shape(kernel)), np.dtype(np.float32), read, name[1:]))


def _reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    stored = StoredArray.of(array)
    shape = tuple(stored.size // -math.prod(shape) if size == -1 else size for size in shape)
    return _like(array, StoredArray(shape, stored.dtype, lambda i: stored.read().reshape(shape)[i], stored.name))


def _like(leaf: Any, array: StoredArray) -> Any:
    return array if isinstance(leaf, StoredArray) else array.read()
