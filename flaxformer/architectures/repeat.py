"""The same layer many times: as a list, rematerialised, or scanned over stacked parameters.

Scanning compiles one layer instead of all of them. Its parameters gain an axis `layers`, by default axis 1; caches and
attention weights gain it in front. `stack_layer_params` and `unstack_layer_params` turn one layout into the other.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning

from flaxformer.components.calling import accepts
from flaxformer.components.products import turn_matrices, weights_are_turned
from flaxformer.telling import told
from flaxformer.types import Array


class LayerRemat(enum.Enum):
    """What a layer keeps for the backward pass, and what it computes again.

    NONE keeps everything; MINIMAL keeps the results of matrix products; FULL keeps the layer's input. LEGACY is FULL
    when layers are scanned and NONE otherwise.
    """

    NONE = "none"
    LEGACY = "legacy"
    FULL = "full"
    MINIMAL = "minimal"


def resolve_remat(layer_remat: LayerRemat | str, scan_layers: bool) -> LayerRemat:
    """The policy as an enum without LEGACY. Raises ValueError for an unknown name."""
    try:
        layer_remat = LayerRemat(layer_remat)
    except ValueError:
        names = [policy.value for policy in LayerRemat]
        raise ValueError(f"layer_remat is {layer_remat!r}; expected one of {names} or a LayerRemat.") from None
    if layer_remat is LayerRemat.LEGACY:
        return LayerRemat.FULL if scan_layers else LayerRemat.NONE
    return layer_remat


def _policy(layer_remat: LayerRemat) -> Callable | None:
    return jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if layer_remat is LayerRemat.MINIMAL else None


def maybe_remat(
    lyrf: Callable[[], nn.Module], layer_remat: LayerRemat | str, scan_layers: bool, static_argnums: Sequence[int]
) -> Callable[[], nn.Module]:
    """The factory `lyrf`, making layers that rematerialise as `layer_remat` says."""
    from flaxformer.components import transforms  # only this older way needs it

    layer_remat = resolve_remat(layer_remat, scan_layers)
    if layer_remat is LayerRemat.NONE:
        return lyrf
    return transforms.factory_remat(
        lyrf, concrete=False, prevent_cse=False, static_argnums=tuple(static_argnums), policy=_policy(layer_remat)
    )


def run_layer(
    layer: nn.Module,
    x: Array,
    args: Sequence[Any],
    arrays: Mapping[str, Any],
    statics: Mapping[str, Any],
    layer_remat: LayerRemat,
) -> Any:
    """One layer on `x`, rematerialised as `layer_remat` says.

    Args:
      layer: called as `layer(x, *args, **arrays, **statics)`.
      x: `[B T D]`.
      args: positional pytrees.
      arrays: keyword pytrees that may hold arrays.
      statics: keywords that are no arrays.
      layer_remat: NONE, FULL or MINIMAL.
    """

    def body(layer: nn.Module, x: Array, args: Sequence[Any], arrays: Mapping[str, Any]) -> Any:
        return call_layer(layer, x, args, arrays, statics)

    if layer_remat is not LayerRemat.NONE:
        body = nn.remat(body, prevent_cse=False, policy=_policy(layer_remat))
    return body(layer, x, tuple(args), dict(arrays))


_LAYERS_FIRST: contextvars.ContextVar[bool] = contextvars.ContextVar("layers_first", default=False)


def layers_first(chosen: bool = True) -> contextlib.AbstractContextManager[bool]:
    """While a model is traced, `scan_layer` takes parameters whose first axis is that of the layers.

    Where weights are turned too (`flaxformer.components.products.read_in_loop`), their matrices lie by output.
    """
    return told(_LAYERS_FIRST, chosen)


def scan_layer(
    layer: nn.Module,
    x: Array,
    args: Sequence[Any],
    arrays: Mapping[str, Any],
    statics: Mapping[str, Any],
    layer_remat: LayerRemat,
    *,
    length: int,
    axis: int,
) -> Array:
    """`length` layers on `x`, scanned over parameters that are stacked along `axis`.

    The arguments before `length` are those of `run_layer`; the layer must return `(output, None)`.
    """

    def body(layer: nn.Module, x: Array, args: Sequence[Any], arrays: Mapping[str, Any]) -> tuple[Array, None]:
        return call_layer(layer, x, args, arrays, statics)

    if layer_remat is not LayerRemat.NONE:
        body = nn.remat(body, prevent_cse=False, policy=_policy(layer_remat))
    if _LAYERS_FIRST.get():
        axis = 0
        if weights_are_turned():
            body = nn.map_variables(body, "params", turn_matrices)
    scanned = partitioning.scan_with_axes(
        body,
        variable_axes={"params": axis, "cache": 0, "cross_cache": 0, "attention": 0, "intermediates": 2},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        axis_name="layers",
        axes_collections=("params", "cache"),
    )
    x, _ = scanned(layer, x, tuple(args), dict(arrays))
    return x


def call_layer(
    layer: nn.Module, x: Array, args: Sequence[Any], arrays: Mapping[str, Any], statics: Mapping[str, Any]
) -> Any:
    """The layer called with the arguments it knows; `position_bias` and `step` are ours and may be unknown to it."""
    keywords = {**arrays, **statics}
    for name in ("position_bias", "step"):
        if name in keywords and not accepts(layer, name):
            del keywords[name]
    return layer(x, *args, **keywords)


_LAYER = re.compile(r"layers_(\d+)")


def stack_layer_params(params: Mapping[str, Any], axis: int = 1, name: str | None = None) -> dict[str, Any]:
    """Parameters of a scanned model from those of the same model with a list of layers.

    Args:
      params: tree in which stacks hold `layers_0`, `layers_1`, ...
      axis: where the layers are stacked.
      name: scope of the stacked layers in a stack at the top of the tree, 'encoder' or 'decoder'; stacks below the
        top use their own name.

    Raises:
      ValueError: when the layers of one stack differ in names or shapes.
    """
    layers = sorted((key for key in params if _LAYER.fullmatch(key)), key=lambda key: int(key.split("_")[1]))
    rest = {k: stack_layer_params(v, axis, k) if isinstance(v, Mapping) else v for k, v in params.items()}
    if not layers:
        return rest
    if name is None:
        raise ValueError("the layers stand at the top of the tree; expected name='encoder' or name='decoder'.")
    trees = [rest.pop(key) for key in layers]
    described = [jax.tree.map(jnp.shape, tree) for tree in trees]
    for key, description in zip(layers, described, strict=True):
        if description != described[0]:
            raise ValueError(f"{key} has other parameters than {layers[0]}; expected equal names and shapes to stack.")
    return {**rest, name: jax.tree.map(lambda *leaves: jnp.stack(leaves, min(axis, leaves[0].ndim)), *trees)}


def unstack_layer_params(params: Mapping[str, Any], axis: int = 1, name: str | None = None) -> dict[str, Any]:
    """The inverse of `stack_layer_params`; the arguments are the same."""
    result: dict[str, Any] = {}
    for key, value in params.items():
        if not isinstance(value, Mapping):
            result[key] = value
        elif key == name and key in ("encoder", "decoder"):
            leaf = jax.tree.leaves(value)[0]
            for i in range(leaf.shape[min(axis, leaf.ndim - 1)]):
                result[f"layers_{i}"] = jax.tree.map(lambda x, i=i: jnp.take(x, i, min(axis, x.ndim - 1)), value)
        else:
            result[key] = unstack_layer_params(value, axis, key)
    return result
