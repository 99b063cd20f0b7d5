"""Pictures of attention: the weights of any layer and head of any model, as heat maps.

    weights = attention_weights(model, variables, tokens)       # {"decoder/layers_0/self_attention": [B N T S], ...}
    figure = heat_map(weights["decoder/layers_0/self_attention"][0, 3], words, words)
    figure.savefig("head.png")

Figures are matplotlib's, made without pyplot: no window opens and nothing global changes. They need the extra `train`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from flaxformer.extras import require
from flaxformer.types import Array

__all__ = ["attention_weights", "draw_heat_map", "head_grid", "heat_map"]

_COLLECTION, _NAME = "attention", "weights"


def attention_weights(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **keywords: Any
) -> dict[str, Float[Array, "*L B N T S"]]:
    """The attention weights of every layer in one call of the model, by the path of the attention module.

    Args:
      model: any model or layer with attention of this library in it; it need not be told anything.
      variables: as for `model.apply`.
      *args: what the model is called with.
      **keywords: likewise. `enable_dropout` is False unless given, where the model has it.

    Returns:
      `{path: [B N T S]}`, in the order of the tree; stacked over layers in front where these are scanned.

    Raises:
      ValueError: when no attention module kept weights.

    >>> from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
    >>> x = jax.numpy.ones((1, 3, 8))
    >>> layer = MultiHeadDotProductAttention(num_heads=2, use_bias=False)
    >>> variables = layer.init(jax.random.key(0), x, x)
    >>> {path: weights.shape for path, weights in attention_weights(layer, variables, x, x).items()}
    {'': (1, 2, 3, 3)}
    """
    _, kept = model.apply(variables, *args, **{"enable_dropout": False, **keywords}, mutable=[_COLLECTION])
    found: dict[Any, Any] = traverse_util.flatten_dict(kept[_COLLECTION] if _COLLECTION in kept else {})
    weights = {"/".join(path[:-1]): sown[-1] for path, sown in found.items() if path[-1] == _NAME}
    if not weights:
        raise ValueError(
            f"{type(model).__name__} kept no attention weights; expected attention modules of "
            "flaxformer.components.attention in it, called at least once."
        )
    return weights


def heat_map(
    weights: Float[Array | np.ndarray, "T S"],
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    *,
    title: str = "",
    query_name: str = "query",
    key_name: str = "key",
) -> Any:
    """One head: queries from top to bottom, keys from left to right, as a `matplotlib.figure.Figure`.

    Args:
      weights: `[T S]`.
      query_labels: T of them; None numbers the positions.
      key_labels: S of them.
      title: above the picture.
      query_name: of the vertical axis.
      key_name: of the horizontal axis.

    Raises:
      ValueError: for weights that are no matrix, or labels that do not fit them.
    """
    drawn = _checked(weights, 2, query_labels, key_labels)
    size = (2.2 + 0.42 * drawn.shape[1], 1.5 + 0.36 * drawn.shape[0])
    figure = require("matplotlib.figure", extra="train").Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = draw_heat_map(axes, drawn, query_labels, key_labels)
    axes.set_ylabel(query_name)
    axes.set_xlabel(key_name)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="attention weight")
    return figure


def head_grid(
    weights: Float[Array, "N T S"],
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    *,
    title: str = "",
    columns: int = 4,
) -> Any:
    """All heads of a layer side by side, on one scale of colours.

    Args:
      weights: `[N T S]`.
      query_labels: as for `heat_map`; shown at the left column only.
      key_labels: as for `heat_map`; shown at the lowest row only.
      title: above all.
      columns: heads per row at most.

    Raises:
      ValueError: as for `heat_map`, and for fewer than one column.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1.")
    drawn = _checked(weights, 3, query_labels, key_labels)
    heads, queries, keys = drawn.shape
    columns = min(columns, heads)
    rows = math.ceil(heads / columns)
    size = (1.5 + columns * (0.8 + 0.22 * keys), 1.0 + rows * (0.8 + 0.2 * queries))
    figure = require("matplotlib.figure", extra="train").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    highest = float(drawn.max())
    image = None
    for head, axes in enumerate(grid.flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        image = draw_heat_map(axes, drawn[head], query_labels, key_labels, highest=highest)
        axes.set_title(f"head {head}")
    figure.suptitle(title)
    figure.colorbar(image, ax=grid, label="attention weight")
    return figure


def draw_heat_map(
    axes: Any,
    weights: Float[np.ndarray, "T S"],
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
    *,
    highest: float | None = None,
) -> Any:
    """Draws weights into axes that the caller made, and returns the image.

    Args:
      axes: of matplotlib.
      weights: `[T S]`.
      query_labels: T of them.
      key_labels: S of them.
      highest: the weight that gets the last colour; None means the highest there is.
    """
    image = axes.imshow(weights, cmap="viridis", vmin=0.0, vmax=highest, aspect="auto")
    if query_labels is not None:
        axes.set_yticks(range(len(query_labels)), query_labels)
    if key_labels is not None:
        axes.set_xticks(range(len(key_labels)), key_labels, rotation=90 if max(map(len, key_labels)) > 2 else 0)
    return image


def _checked(
    weights: Any, rank: int, query_labels: Sequence[str] | None, key_labels: Sequence[str] | None
) -> np.ndarray:
    array = np.asarray(jax.device_get(weights), np.float32)
    if array.ndim != rank or not array.size:
        kind = "[T S], one head of one row" if rank == 2 else "[N T S], the heads of one row"
        raise ValueError(f"weights has shape {array.shape}; expected {kind}. Index the batch first.")
    for name, labels, length in (("query", query_labels, array.shape[-2]), ("key", key_labels, array.shape[-1])):
        if labels is not None and len(labels) != length:
            raise ValueError(
                f"there are {len(labels)} {name} labels; expected {length}, one per {name} of weights {array.shape}."
            )
    return array
