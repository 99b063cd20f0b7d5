"""Checking, before anything is built, that all a macro will need is there."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.values import Bound, Macro, Marker, Reference, Required, markers, short

if TYPE_CHECKING:
    from flaxformer.configs.configuration import Configuration


class _Use(NamedTuple):
    """A value bound to a name, with how that name came to be needed."""

    name: str
    bound: Bound
    because: str


def check(configuration: Configuration, root: Macro | Reference) -> None:
    """Follows every macro and reference that `root` leads to.

    Raises:
      ConfigurationError: for a macro that is not defined, with the names that come close and the place of its use, and
        for names still marked `%gin.REQUIRED`, with the place of each and of its use.
    """
    files = ", ".join(map(str, configuration.files)) or "no file"
    todo = collections.deque(_needs(configuration, root, f"asked for by name in {files}"))
    seen: set[Marker] = {root}
    missing: dict[str, str] = {}
    while todo:
        use = todo.popleft()
        for marker in markers(use.bound.value):
            if marker is Required.REQUIRED:
                missing.setdefault(use.name, f"{use.name} (declared at {use.bound.location}; it is {use.because})")
            elif marker not in seen:
                seen.add(marker)
                todo.extend(_needs(configuration, marker, f"used by {use.name}, {use.bound.location}"))
    if missing:
        name = next(iter(missing))
        raise ConfigurationError(
            f"required and not bound: {', '.join(missing.values())}. Bind each, for example with --gin.{name}=VALUE or "
            f"bindings=['{name} = VALUE']."
        )


def _needs(configuration: Configuration, marker: Marker, because: str) -> Iterator[_Use]:
    if isinstance(marker, Macro):
        yield _Use(marker.name, configuration.macro(marker.name, because), because)
    elif isinstance(marker, Reference):
        for (scope, target), found in configuration.bindings.items():
            if target is marker.target:
                for parameter, bound in found.items():
                    yield _Use(f"{'/'.join((*scope, short(marker.path)))}.{parameter}", bound, because)
