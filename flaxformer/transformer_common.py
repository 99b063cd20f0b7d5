"""Layers one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from flaxformer.architectures.common import param_remapping


def _apply_layers(layers: Sequence[Callable[..., Any]], inputs: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in layers:
        inputs = layer(inputs, *args, **kwargs)
    return inputs


@dataclasses.dataclass(frozen=True)
class TransparentLayerSequence:
    """Layers that somebody else owns, one after another. Not a module: it adds no scope to the parameter tree.

    Attributes:
      layers: called as `layer(activations, *args, **kwargs)`.

    >>> TransparentLayerSequence([lambda x: x + 1, lambda x: 2 * x])(3)
    8
    """

    layers: Sequence[Callable[..., Any]]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Feeds `inputs` through all layers, passing the other arguments to each of them unchanged."""
        return self.apply_range_of_layers(0, None, inputs, *args, **kwargs)

    def apply_range_of_layers(self, start_idx: int, end_idx: int | None, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Feeds `inputs` through `layers[start_idx:end_idx]`."""
        return _apply_layers(self.layers[start_idx:end_idx], inputs, *args, **kwargs)


class LayerSequence(nn.Module, param_remapping.ParameterRemappable):
    """Layers one after another, with parameters under `layers_0`, `layers_1`, ...

    Attributes:
      num_layers: how many.
      make_layer: makes one layer; called `num_layers` times, with `extra_modules` as keywords.
      extra_modules: modules that all layers share.
    """

    num_layers: int
    make_layer: Callable[..., Any]
    extra_modules: dict[str, nn.Module | None] | None = None

    def setup(self) -> None:
        self.layers = [self.make_layer(**(self.extra_modules or {})) for _ in range(self.num_layers)]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Feeds `inputs` through all layers, passing the other arguments to each of them unchanged."""
        return self.apply_range_of_layers(0, None, inputs, *args, **kwargs)

    def apply_range_of_layers(self, start_idx: int, end_idx: int | None, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Feeds `inputs` through `layers[start_idx:end_idx]`."""
        return _apply_layers(self.layers[start_idx:end_idx], inputs, *args, **kwargs)
