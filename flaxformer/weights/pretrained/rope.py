"""Rotary positions and layer kinds in config.json, in the spelling of transformers 4 and of 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flaxformer.components.positions.rotary_scaling import yarn_magnitude
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.family import Gin

SLIDING, FULL = "sliding_attention", "full_attention"


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
    """The macros for one set of parameters; `prefix` is put in front of the names.

    Raises:
      CheckpointError: a `ValueError`, for a scaling or a parameter of it that is not implemented.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _KNOWN:
        raise CheckpointError(
            f"{attributes.where} scales its rotary positions by {kind!r}, which is not implemented; expected one of "
            f"{', '.join(map(repr, _KNOWN))}."
        )
    known = {"rope_theta", "partial_rotary_factor", "rope_type", "type", *_KNOWN[kind]}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise CheckpointError(
            f"{attributes.where} has rotary parameters that are not known for {kind!r}: {', '.join(unknown)}; "
            f"expected {', '.join(sorted(known))}."
        )
    macros = {
        f"{prefix}ROTARY_TIMESCALE": float(parameters["rope_theta"]),
        f"{prefix}ROTARY_FRACTION": float(parameters.get("partial_rotary_factor", 1.0)),
    }
    if kind == "default":
        return macros
    # A scope of its own: the two rotations of one model may be scaled differently.
    scaling = f"{prefix.lower()}scaled/rotary_scaling.{_CLASSES[kind]}"
    fields = _fields(kind, parameters, attributes.get("max_position_embeddings"))
    bound = {f"{scaling}.{name}": value for name, value in fields.items()}
    return {**macros, f"{prefix}ROTARY_SCALING": Gin(f"@{scaling}()"), **bound}


# The parameters of each kind of scaling, beside those of all, and our class.
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
_CLASSES = {"linear": "LinearScaling", "llama3": "Llama3Scaling", "yarn": "YarnScaling"}


def _fields(kind: str, parameters: Mapping[str, Any], longest: int | None) -> dict[str, Any]:
    """The fields of our scaling; `longest` is the length where the file names no original one."""
    factor = float(parameters["factor"])
    if kind == "linear":
        return {"factor": factor}
    length = int(parameters.get("original_max_position_embeddings", longest))
    if kind == "llama3":
        turns = {"low_turns": "low_freq_factor", "high_turns": "high_freq_factor"}
        named = {ours: float(parameters[theirs]) for ours, theirs in turns.items()}
        return {"factor": factor, **named, "original_length": length}
    return {
        "factor": factor,
        "original_length": length,
        "fast_turns": float(parameters.get("beta_fast") or 32),
        "slow_turns": float(parameters.get("beta_slow") or 1),
        "attention_factor": _magnitude(factor, parameters),
        "whole_pairs": parameters.get("truncate", True),
    }


def _magnitude(factor: float, parameters: Mapping[str, Any]) -> float | None:
    """What YaRN multiplies rotated queries and keys by; None is the paper's."""
    one, other = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if parameters.get("attention_factor") is None and one and other:
        return yarn_magnitude(factor, one) / yarn_magnitude(factor, other)
    return parameters.get("attention_factor")


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
