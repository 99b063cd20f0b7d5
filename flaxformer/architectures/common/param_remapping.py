"""Versioned layouts of saved parameters.

A module whose parameters change shape or name between releases states how to turn one layout into the other; the rest
of the model does not notice. The *save format* is the parameter tree plus, beside the parameters of every remappable
module, an entry `__save_format_metadata__` with the version of its layout:

    params = model.init(...)["params"]
    saved = model.apply({}, params, method=model.to_save_format)
    assert model.apply({}, saved, method=model.from_save_format) == params

A tree without metadata is read as version 0.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
from flax.linen.module import wrap_method_once

METADATA_KEY = "__save_format_metadata__"
VERSION_KEY = "__version__"


class RecursiveDefaultDict(collections.defaultdict):
    """Nested dicts that come into being by being read, and whose leaves are never overwritten.

    >>> tree = RecursiveDefaultDict({"a": {"b": 1}})
    >>> tree["c"]["d"] = 2
    >>> tree.merge("a", {"e": 3})
    >>> tree.to_dict()
    {'a': {'b': 1, 'e': 3}, 'c': {'d': 2}}
    """

    def __init__(self, initial_content: Mapping[str, Any] | None = None):
        super().__init__(RecursiveDefaultDict)
        if initial_content is not None:
            self.update(initial_content)

    def merge(self, key: str, value: Any) -> None:
        """Stores `value`, merging mappings into what is there.

        Raises:
          ValueError: when that would overwrite a leaf, or put one in the place of a mapping.
        """
        if key not in self:
            self[key] = RecursiveDefaultDict(value) if isinstance(value, Mapping) else value
        elif not isinstance(self[key], RecursiveDefaultDict):
            raise ValueError(f"{key!r} already holds a leaf; expected nothing there. Pop it before storing another.")
        elif not isinstance(value, Mapping):
            raise ValueError(
                f"{key!r} holds a mapping and {type(value).__name__} came to be merged into it; expected a mapping."
            )
        else:
            self[key].update(value)

    def update(self, other: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Merges every item of `other`."""
        for key, value in other.items():
            self.merge(key, value)

    def pop(self, key: str, default: Any = None) -> Any:  # type: ignore[override]
        """Removes and returns an entry; `default`, or without one an empty tree, when it is absent."""
        if key in self:
            return super().pop(key)
        return RecursiveDefaultDict() if default is None else default

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, without the empty ones."""
        plain = {
            key: value.to_dict() if isinstance(value, RecursiveDefaultDict) else value for key, value in self.items()
        }
        return {key: value for key, value in plain.items() if not (isinstance(value, dict) and not value)}


def filter_out_metadata(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` without metadata entries, and without mappings that are empty then.

    >>> filter_out_metadata({"a": 1, METADATA_KEY: {VERSION_KEY: 0}, "b": {METADATA_KEY: {VERSION_KEY: 0}}})
    {'a': 1}
    """
    filtered = {
        key: filter_out_metadata(value) if isinstance(value, Mapping) else value
        for key, value in params.items()
        if key != METADATA_KEY
    }
    return {key: value for key, value in filtered.items() if not (isinstance(value, dict) and not value)}


def _with_setup(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, run after `setup` has made the submodules, and outside the name scopes of Linen."""
    return nn.nowrap(wrap_method_once(method))


class ParameterRemappable:
    """Mixin for Linen modules that can be saved in a versioned layout.

    Override `_to_save_format`, `_from_save_format` and `save_format_metadata` together when a layout changes.
    """

    @property
    def save_format_metadata(self) -> dict[str, Any]:
        """What is written beside the module's parameters."""
        return {VERSION_KEY: 0}

    @_with_setup
    def to_save_format(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of this module as they are to be saved.

        Submodules are converted first, then this module's own layout.
        """
        saved = RecursiveDefaultDict(self._submodules_to_save_format(params))
        saved = _plain(self._to_save_format(saved))
        saved[METADATA_KEY] = self.save_format_metadata
        return saved

    @_with_setup
    def from_save_format(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Inverse of `to_save_format`; reads every version that was ever written."""
        saved = RecursiveDefaultDict(params)
        if METADATA_KEY not in saved:
            saved.merge(METADATA_KEY, {VERSION_KEY: 0})
        own = _plain(self._from_save_format(saved))
        return filter_out_metadata(self._submodules_from_save_format(own))

    @nn.nowrap
    def _to_save_format(self, params: RecursiveDefaultDict) -> Mapping[str, Any]:
        """This module's own change of layout; none by default."""
        return params

    @nn.nowrap
    def _from_save_format(self, params: RecursiveDefaultDict) -> Mapping[str, Any]:
        """Inverse of `_to_save_format`; the version that was saved is `params[METADATA_KEY][VERSION_KEY]`."""
        return params

    @_with_setup
    def _submodules_to_save_format(self, params: Mapping[str, Any]) -> dict[str, Any]:
        params = _unfrozen(params)
        for name, module in self._get_remappable_submodules():
            if name in params:
                params[name] = module.to_save_format(params[name])
        return params

    @_with_setup
    def _submodules_from_save_format(self, params: Mapping[str, Any]) -> dict[str, Any]:
        params = _unfrozen(params)
        for name, module in self._get_remappable_submodules():
            if name in params:
                params[name] = module.from_save_format(params[name])
        return params

    @_with_setup
    def _get_remappable_submodules(self) -> list[tuple[str, ParameterRemappable]]:
        """Direct submodules that are remappable, with their names."""
        return [(module.name, module) for module in self._get_submodules()]

    @_with_setup
    def _get_submodules(self) -> list[Any]:
        fields = [field.name for field in dataclasses.fields(cast(Any, self))]
        others = [name for name in vars(self) if name not in fields]
        found = {}
        for name in fields + others:
            if name not in ("name", "parent"):
                found |= {id(module): module for module in _remappable_in(getattr(self, name, None))}
        return list(found.values())


def _remappable_in(value: Any) -> Iterator[Any]:
    """Remappable modules in `value`, looking inside lists, tuples and mappings."""
    if isinstance(value, nn.Module):
        if isinstance(value, ParameterRemappable):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _remappable_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _remappable_in(item)


def _unfrozen(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _unfrozen(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return tree.to_dict() if isinstance(tree, RecursiveDefaultDict) else dict(tree)
