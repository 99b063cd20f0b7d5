"""One model's parameters in another of its layouts: layers as a list or stacked, relative biases per layer or shared.

Nothing is computed: every number stays as it is. Leaves may be stored arrays, which stay on disk. For trees in memory
`flaxformer.architectures.repeat` does the same as `stack_layers` and `unstack_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from flaxformer.weights.arrays import StoredArray, stack, take
from flaxformer.weights.errors import CheckpointError

Params = dict[str, Any]
_LAYER = re.compile(r"layers_(\d+)")
_STACKS = ("encoder", "decoder")
_BIAS = "relpos_bias"


def stack_layers(params: Mapping[str, Any], axis: int = 1) -> Params:
    """The parameters of a scanned model (`scan_layers=True`) from those of the same model with a list of layers.

    Args:
      params: the whole tree; its stacks `encoder` and `decoder` hold `layers_0`, `layers_1`, ...
      axis: the model's `scan_axis`.

    Raises:
      CheckpointError: a `ValueError`, when there are no such layers, when those of one stack differ, and when they
        share a relative bias, which scanned layers cannot: see `split_relative_bias`.
    """

    def change(name: str, tree: Params) -> Params:
        layers = _numbers(tree)
        if _BIAS in tree:
            raise CheckpointError(
                f"{name} has one relative bias for all layers; expected one per layer, as scanned layers have. "
                "Use split_relative_bias first."
            )
        described = {number: _shapes(tree[f"layers_{number}"]) for number in layers}
        for number, shapes in described.items():
            if shapes != described[0]:
                raise CheckpointError(f"{name}/layers_{number} has other parameters than layers_0; expected the same.")
        rest = {key: value for key, value in tree.items() if not _LAYER.fullmatch(key)}
        return {**rest, name: _join([tree[f"layers_{number}"] for number in layers], axis)}

    return _in_stacks(params, change, lambda name, tree: bool(_numbers(tree)), "layers_0, layers_1, ...")


def unstack_layers(params: Mapping[str, Any], axis: int = 1) -> Params:
    """The inverse of `stack_layers`; the arguments are the same."""

    def change(name: str, tree: Params) -> Params:
        flat: dict[Any, Any] = traverse_util.flatten_dict(tree[name])
        axes = {path: min(axis, np.ndim(leaf) - 1) for path, leaf in flat.items()}
        counts = {leaf.shape[axes[path]] for path, leaf in flat.items()}
        if len(counts) != 1:
            raise CheckpointError(
                f"the parameters in {name}/{name} have the sizes {sorted(counts)} on axis {axis}; expected one number "
                "of layers. Correct axis: it is the model's scan_axis."
            )
        layers = {
            f"layers_{i}": traverse_util.unflatten_dict(
                {path: _like(leaf, take(leaf, i, axes[path])) for path, leaf in flat.items()}
            )
            for i in range(counts.pop())
        }
        return {**{key: value for key, value in tree.items() if key != name}, **layers}

    return _in_stacks(params, change, lambda name, tree: isinstance(tree.get(name), Mapping), "encoder/encoder")


def share_relative_bias(params: Mapping[str, Any]) -> Params:
    """The parameters of a model whose layers share a relative bias, from one whose layers have equal ones.

    Raises:
      CheckpointError: a `ValueError`, when the biases of a stack differ: then no shared one is the same model.
    """

    def change(name: str, tree: Params) -> Params:
        layers = _numbers(tree)
        biases = [tree[f"layers_{number}"].get(_BIAS) for number in layers]
        first = biases[0]
        for number, bias in zip(layers, biases, strict=True):
            if not _equal(first, bias):
                raise CheckpointError(
                    f"{name}/layers_{number}/{_BIAS} differs from that of layers_0; expected equal biases, which "
                    "layers can share. Keep one per layer (relative_position_bias_factory)."
                )
        bare = {f"layers_{n}": {k: v for k, v in tree[f"layers_{n}"].items() if k != _BIAS} for n in layers}
        return {**tree, **bare, _BIAS: first}

    return _in_stacks(params, change, lambda _, tree: _BIAS in tree.get("layers_0", ()), f"layers_0/{_BIAS}")


def split_relative_bias(params: Mapping[str, Any]) -> Params:
    """The parameters of a model with a relative bias per layer, from one whose layers share it: the inverse."""

    def change(name: str, tree: Params) -> Params:
        shared = tree[_BIAS]
        layers = {key: {**value, _BIAS: shared} for key, value in tree.items() if _LAYER.fullmatch(key)}
        return {key: value for key, value in (tree | layers).items() if key != _BIAS}

    return _in_stacks(params, change, lambda _, tree: _BIAS in tree and bool(_numbers(tree)), _BIAS)


def _in_stacks(
    params: Mapping[str, Any],
    change: Callable[[str, Params], Params],
    applies: Callable[[str, Mapping[str, Any]], bool],
    wanted: str,
) -> Params:
    """`params` with `change` applied to the stacks that it applies to; refused where there is none."""
    stacks = [name for name in _STACKS if isinstance(params.get(name), Mapping) and applies(name, params[name])]
    if not stacks:
        raise CheckpointError(
            f"the parameters have {', '.join(params) or 'no entries'}; expected a stack 'encoder' or 'decoder' with "
            f"{wanted}. Is it in the wanted layout already?"
        )
    return {**params, **{name: change(name, dict(params[name])) for name in stacks}}


def _numbers(tree: Mapping[str, Any]) -> list[int]:
    found = sorted(int(name[1]) for name in map(_LAYER.fullmatch, tree) if name)
    if found != list(range(len(found))):
        raise CheckpointError(f"the layers are numbered {found}; expected 0, 1, 2, ... without gaps.")
    return found


def _shapes(tree: Mapping[str, Any]) -> dict[Any, Any]:
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(tree))
    return {path: np.shape(leaf) for path, leaf in flat.items()}


def _join(layers: Sequence[Mapping[str, Any]], axis: int) -> Params:
    flat: list[dict[Any, Any]] = [traverse_util.flatten_dict(dict(layer)) for layer in layers]
    joined = {
        path: _like(leaf, stack([layer[path] for layer in flat], min(axis, np.ndim(leaf))))
        for path, leaf in flat[0].items()
    }
    return traverse_util.unflatten_dict(joined)


def _like(leaf: Any, array: StoredArray) -> Any:
    return array if isinstance(leaf, StoredArray) else array.read()


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None or _shapes(one) != _shapes(other):
        return False
    first, second = (traverse_util.flatten_dict(dict(tree)) for tree in (one, other))
    return all(np.array_equal(np.asarray(first[path]), np.asarray(second[path])) for path in first)
