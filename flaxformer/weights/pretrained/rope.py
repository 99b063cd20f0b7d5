"""Rotary positions and layer kinds in config.json, in the spelling of transformers 4 and of 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.family import Gin

SLIDING, FULL = "sliding_attention", "full_attention"
_SCALING = "rotary_scaling"


def rotary(attributes: Attributes, theta: float = 10000.0, fraction: float = 1.0) -> dict[str, Any]:
    """The macros `ROTARY_*` of `gin/llama/parts.gin`.

    Args:
      attributes: with `rope_parameters` (5.x), or `rope_theta`, `rope_scaling` and `partial_rotary_factor` (4.x).
      theta: the base where the file names none.
      fraction: likewise for the share of a head that rotates.

    Raises:
      CheckpointError: a `ValueError`, for a scaling that is not implemented.
    """
    attributes.without_effect("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
    attributes.without_effect("partial_rotary_factor", "rotary_pct", "rotary_emb_base")
    parameters = attributes.get("rope_parameters", {})
    if any(kind in parameters for kind in (SLIDING, FULL)):
        raise CheckpointError(f"{attributes.where} has rope_parameters per kind of layer; expected one set of them.")
    old = {
        "rope_theta": attributes.get("rope_theta", attributes.get("rotary_emb_base", theta)),
        "partial_rotary_factor": attributes.get("partial_rotary_factor", attributes.get("rotary_pct", fraction)),
    }
    return rotary_macros(attributes, {**old, **attributes.get("rope_scaling", {}), **parameters})


def rotary_macros(attributes: Attributes, parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The macros for one set of parameters; `prefix` is put in front of the names."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    known = {"rope_theta", "partial_rotary_factor", "rope_type", "type"}
    macros = {
        f"{prefix}ROTARY_TIMESCALE": float(parameters["rope_theta"]),
        f"{prefix}ROTARY_FRACTION": float(parameters.get("partial_rotary_factor", 1.0)),
    }
    if kind == "linear":
        known |= {"factor"}
        macros |= {
            f"{prefix}ROTARY_SCALING": Gin(f"@{_SCALING}.LinearScaling()"),
            f"{_SCALING}.LinearScaling.factor": float(parameters["factor"]),
        }
    elif kind == "llama3":
        known |= {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
        macros |= {
            f"{prefix}ROTARY_SCALING": Gin(f"@{_SCALING}.Llama3Scaling()"),
            f"{_SCALING}.Llama3Scaling.factor": float(parameters["factor"]),
            f"{_SCALING}.Llama3Scaling.low_turns": float(parameters["low_freq_factor"]),
            f"{_SCALING}.Llama3Scaling.high_turns": float(parameters["high_freq_factor"]),
            f"{_SCALING}.Llama3Scaling.original_length": int(parameters["original_max_position_embeddings"]),
        }
    elif kind != "default":
        raise CheckpointError(
            f"{attributes.where} scales its rotary positions by {kind!r}, which is not implemented; expected "
            "'default', 'linear' or 'llama3'."
        )
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise CheckpointError(
            f"{attributes.where} has rotary parameters that are not known for {kind!r}: {', '.join(unknown)}; "
            f"expected {', '.join(sorted(known))}."
        )
    return macros


def layers(kinds: Sequence[str], layer: str) -> dict[str, Any]:
    """The macro `LAYERS` for the kind of every layer; `layer` is the gin name of the layer's class."""
    scopes = {SLIDING: f"@sliding/{layer}", FULL: f"@full/{layer}"}
    named = [scopes[kind] for kind in kinds]
    return {"LAYERS": Gin(named[0] if len(set(named)) == 1 else f"({', '.join(named)})")}


def kinds_of(attributes: Attributes, default: Sequence[str]) -> list[str]:
    """`layer_types`, or `default` where the file has none.

    Raises:
      CheckpointError: a `ValueError`, for kinds that are not implemented, or too few of them.
    """
    kinds = list(attributes.get("layer_types", default))
    if len(kinds) != len(default) or set(kinds) - {SLIDING, FULL}:
        raise CheckpointError(
            f"{attributes.where} has layer_types={kinds}; expected {len(default)} of {SLIDING!r} and {FULL!r}."
        )
    return kinds
