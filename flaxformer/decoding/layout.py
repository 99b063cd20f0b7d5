"""How a model is built, as far as decoding asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxformer.decoding.cache_rows import Stacked
from flaxformer.decoding.static import Static
from flaxformer.decoding.weight_order import Stack


class Layout(NamedTuple):
    """What `layout_of` finds.

    Attributes:
      stacked: where in a cache the decoder's layers are scanned; everywhere if only the model's word is known.
      scanned: the parameters of the decoder's scanned layers, if `flaxformer.architectures.repeat` scans them.
      positions: the rows of position tables that are no parameters, by stack.
    """

    stacked: Stacked
    scanned: Stack | None
    positions: Mapping[str, int]


_LAYOUTS: dict[Static, Layout] = {}
"""By model: setting one up to look into it takes tens of milliseconds. A model lives as long in the cache of jit."""


def layout_of(model: Any, variables: Mapping[str, Any]) -> Layout:
    """The layout of a model, which is looked into once."""
    known = Static(model)
    if known not in _LAYOUTS:
        _LAYOUTS[known] = model.apply(variables, method=_look)
    return _LAYOUTS[known]


def _look(module: Any) -> Layout:
    return Layout(_stacked(module), _scanned(module), _positions(module))


def _stacked(module: Any) -> Stacked:
    decoder = getattr(module, "decoder", None)
    if not any(getattr(part, "scan_layers", False) for part in (module, decoder)):
        return None
    layer = getattr(decoder, getattr(decoder, "_scan_name", ""), None)
    return () if layer is None else layer.path


def _scanned(module: Any) -> Stack | None:
    decoder: Any = getattr(module, "decoder", None)
    if not getattr(decoder, "scan_layers", False) or getattr(decoder, "_scans_itself", True):
        return None
    return Stack(getattr(decoder, decoder._scan_name).path, decoder.scan_axis)


def _positions(module: Any) -> dict[str, int]:
    stacks = {name: getattr(module, name, None) for name in ("encoder", "decoder")}
    embedders = {name: getattr(stack, "embedder", None) for name, stack in stacks.items()}
    tables: dict[str, Any] = {name: getattr(x, "embedders", {}).get("position_ids") for name, x in embedders.items()}
    return {name: table.max_length for name, table in tables.items() if hasattr(table, "max_length")}
