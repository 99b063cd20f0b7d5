"""Resolving the dotted names of one gin text, as gin does: through the imports of that text."""

import importlib
import types
from collections.abc import Iterable
from typing import Any

from gin import config as gin_config
from gin import config_parser

from flaxformer.configs.configuration import Configuration
from flaxformer.configs.errors import ConfigurationError, near_misses
from flaxformer.configs.values import Constant, Target

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"


class Names:
    """The names known in one text.

    A text with `from __gin__ import dynamic_registration` knows its own imports. One without it (usually bindings from
    a command line) knows what the texts before it named, shortened from the left as far as it stays unique.
    """

    def __init__(self, configuration: Configuration):
        self._configuration = configuration
        self._dynamic = False
        self._imported: dict[str, tuple[str, types.ModuleType]] = {}

    def take_import(self, statement: config_parser.ImportStatement) -> None:
        """Imports a module, and binds its name here and for later texts."""
        if statement.module == _DYNAMIC_REGISTRATION:
            self._dynamic = True
            return
        try:
            module = importlib.import_module(statement.module)
        except ImportError as error:
            old = statement.module.partition(".")[0] == "t5x"
            advice = "Rewrite the file: flaxformer migrate OLD.gin > new.gin" if old else "Install what provides it"
            raise ConfigurationError(
                f"cannot import {statement.module!r} ({error}). {advice}, or take the import out."
            ) from error
        self._configuration.modules.setdefault(statement.module)
        name = statement.bound_name()
        whole = statement.is_from or statement.alias
        self._imported[name] = (statement.module, module) if whole else (name, importlib.import_module(name))
        self._configuration.symbols[name] = self._imported[name]

    def target(self, selector: str) -> tuple[str, Target]:
        """The full dotted path and the function or class that `selector` names."""
        path, target = self._follow(selector) or self._by_suffix(selector) or self._unknown(selector)
        if not callable(target):
            raise ConfigurationError(
                f"{selector!r} is a {type(target).__name__}; expected a function or class, which can be configured."
            )
        self._configuration.targets[path] = target
        return path, target

    def constant(self, name: str) -> Constant:
        """The Python object that `%name` with a dotted name stands for."""
        found = self._follow(name)
        if found is not None:
            return Constant(*found)
        registered = gin_config.parse_value(f"%{name}")
        if registered.selector == "gin.constant":
            return Constant(name, registered.scoped_configurable_fn())
        return Constant(*self._unknown(name))

    def _follow(self, dotted: str) -> tuple[str, Any] | None:
        """`dotted` as attributes of an imported module, with its full path."""
        root, *attributes = dotted.split(".")
        path, value = self._symbols.get(root, (None, None))
        for attribute in attributes:
            if path is None or not hasattr(value, attribute):
                return None
            path, value = f"{path}.{attribute}", getattr(value, attribute)
        return (path, value) if path else None

    def _by_suffix(self, selector: str) -> tuple[str, Target] | None:
        if self._dynamic:
            return None
        targets = self._configuration.targets
        found = {path: target for path, target in targets.items() if f".{path}".endswith(f".{selector}")}
        if len(set(found.values())) > 1:
            raise ConfigurationError(f"{selector!r} is ambiguous; write one of {', '.join(sorted(found))}.")
        return next(iter(found.items()), None)

    def _unknown(self, dotted: str) -> Any:
        """Raises, with the names that come close at the first part of `dotted` that is not known."""
        root, *attributes = dotted.split(".")
        if root not in self._symbols:
            raise ConfigurationError(
                f"{dotted!r} is not known: {root!r} is not imported; {near_misses(dotted, self._known(dotted))}"
            )
        path, value = self._symbols[root]
        for attribute in attributes:
            if not hasattr(value, attribute):
                known = [name for name in dir(value) if not name.startswith("_") and callable(getattr(value, name))]
                raise ConfigurationError(f"{path} has no {attribute!r}; {near_misses(attribute, known)}")
            path, value = f"{path}.{attribute}", getattr(value, attribute)

    @property
    def _symbols(self) -> dict[str, tuple[str, types.ModuleType]]:
        return self._imported if self._dynamic else self._configuration.symbols

    def _known(self, dotted: str) -> Iterable[str]:
        """Names of the same number of parts as `dotted`."""
        parts = dotted.count(".") + 1
        paths = [] if self._dynamic else [".".join(path.split(".")[-parts:]) for path in self._configuration.targets]
        rest = dotted.split(".")[1:]
        return [*paths, *(".".join((symbol, *rest)) for symbol in self._symbols)]
