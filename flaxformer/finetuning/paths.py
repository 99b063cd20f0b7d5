"""Parameters chosen by the patterns of their paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util

Params = Mapping[str, Any]


def flatten(params: Params) -> dict[str, Any]:
    """Parameters by path: `{"encoder/layers_0/.../kernel": array}`, sorted."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that `flatten` took apart."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def chosen(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that any of the regular expressions matches as a whole.

    Raises:
      ValueError: for a pattern that matches no path, with the nearest ones, and for a bare string.
    """
    if isinstance(patterns, str):
        raise ValueError(f"patterns is the string {patterns!r}; expected a sequence. Write [{patterns!r}].")
    paths = list(paths)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ValueError(
                f"the pattern {pattern!r} matches no parameter; expected a regular expression for whole paths such as "
                f"{', '.join(near) or 'those of a model with parameters'}. Begin it with '.*' to match an ending."
            )
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)]


def matching(params: Params, patterns: Sequence[str]) -> dict[str, Any]:
    """For every parameter whether one of the patterns matches its whole path.

    Args:
      params: a tree of dictionaries.
      patterns: regular expressions for paths like `decoder/layers_0/mlp/wi/kernel`.

    Returns:
      The tree with True and False for its leaves, as `optax.masked` takes it.

    Raises:
      ValueError: for a pattern that matches nothing.
    """
    flat = flatten(params)
    taken = set(chosen(flat, patterns))
    return unflatten({path: path in taken for path in flat})
