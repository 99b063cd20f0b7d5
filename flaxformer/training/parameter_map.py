"""Settings of an optimizer that differ between parameters, by regular expressions over their paths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from flaxformer.errors import UnknownNameError


@dataclasses.dataclass(frozen=True)
class HParamMap:
    r"""A value per parameter: that of the first regular expression found anywhere in its path.

    >>> scaled = HParamMap(((r"layer_norm/scale$", False), (r".*", True)))
    >>> scaled["encoder/layers_0/pre_mlp_layer_norm/scale"], scaled["encoder/layers_0/mlp/wo/kernel"]
    (False, True)

    Attributes:
      rules: `(regular expression, value)`; paths are joined by '/'.
    """

    rules: Sequence[tuple[str, Any]]

    def __getitem__(self, path: str) -> Any:
        for pattern, value in self.rules:
            if re.search(pattern, path):
                return value
        raise UnknownNameError(
            f"no rule matches the parameter {path}; expected one for every parameter, and got the patterns "
            f"{[pattern for pattern, _ in self.rules]}. Add ('.*', value) at the end for all others."
        )

    def __call__(self, params: Any) -> Any:
        """The values in a tree like `params`."""
        return jax.tree_util.tree_map_with_path(lambda keys, _: self[path_of(keys)], params)


def path_of(keys: Any) -> str:
    """A path of `jax.tree_util` joined by '/'."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")
