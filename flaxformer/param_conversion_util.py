"""Reading TensorFlow checkpoints into parameter trees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from flaxformer.extras import require
from flaxformer.types import Array


def load_tf_params(checkpoint_path: str) -> dict[str, Any]:
    """Every variable of a TensorFlow checkpoint, by name.

    Args:
      checkpoint_path: the prefix of the checkpoint's files, or a folder of checkpoints.
    """
    reader = require("tensorflow", extra="seqio").train.load_checkpoint(checkpoint_path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def convert_tf_params(
    tf_params: Mapping[str, Any], mapping: Mapping[tuple[str, ...], str], tf_prefix: str = ""
) -> dict[str, Any]:
    """A parameter tree from the variables of a TensorFlow checkpoint.

    Args:
      tf_params: variables by name, with or without `:0` behind it.
      mapping: path in the result to name in the checkpoint.
      tf_prefix: put in front of every name.

    Returns:
      Nested dict of arrays.

    Raises:
      ValueError: when the checkpoint lacks a variable.

    >>> convert_tf_params({"bert/w:0": 1.0}, {("dense", "kernel"): "w"}, tf_prefix="bert/")["dense"]["kernel"].item()
    1.0
    """
    return unflatten_dict({path: _lookup(tf_params, tf_prefix + name) for path, name in mapping.items()})


def _lookup(tf_params: Mapping[str, Any], name: str) -> Array:
    for candidate in (name, f"{name}:0"):
        if candidate in tf_params:
            return jnp.asarray(tf_params[candidate])
    raise ValueError(
        f"the checkpoint has no variable {name!r} (nor {name + ':0'!r}); it has {sorted(tf_params)}. "
        "Check tf_prefix and the mapping."
    )


def get_int_regex_matches(pattern: str, state: Iterable[str]) -> list[int]:
    """The different integers that group 1 of `pattern` matches at the start of the names in `state`, sorted.

    >>> get_int_regex_matches(r"layer_(\\d+)/", {"layer_10/w": 0, "layer_2/w": 0, "layer_2/b": 0, "pooler": 0})
    [2, 10]
    """
    matches = (re.match(pattern, name) for name in state)
    return sorted({int(match.group(1)) for match in matches if match})
