"""From gin text to a `Configuration`. The grammar is gin's own parser; global gin state is neither read nor changed."""

import io
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from flaxformer.configs import files
from flaxformer.configs.configuration import Configuration, parameters
from flaxformer.configs.errors import ConfigurationError, Location, near_misses
from flaxformer.configs.names import Names
from flaxformer.configs.values import Bound, Macro, Reference, Required, Target, short

ROOTS = ("MODEL", "ARCHITECTURE")  # what a file is about: a model file, or an architecture file
_HAND = "bindings"


def read(
    names: files.PathLike | Sequence[files.PathLike],
    bindings: Sequence[str] = (),
    search_paths: Sequence[files.PathLike] = (),
    macros: Iterable[str] = (),
) -> Configuration:
    """Reads gin files and then bindings; later ones win.

    Args:
      names: one file or several, as `files.find` takes them.
      bindings: gin statements, for example `"DROPOUT_RATE = 0.1"`.
      search_paths: folders to look in first.
      macros: names that `bindings` may define although no file mentions them, because the caller asks for them.

    Raises:
      ConfigurationError: for what cannot be found, parsed, imported or resolved, and for a binding that would change
        nothing because no file knows its macro.
    """
    configuration = Configuration()
    for name in [names] if isinstance(names, str) or not isinstance(names, Sequence) else names:
        _read_file(configuration, name, search_paths, ())
    known = {*configuration.macros, *macros, *ROOTS}
    _Reader(configuration, _HAND, search_paths, ()).read("\n".join(bindings))
    known |= configuration.used_macros()
    for name, bound in configuration.macros.items():
        if bound.location.file == _HAND and name not in known:
            raise ConfigurationError(
                f"{bound.location}: {name} would change nothing: no file defines or uses a macro of that name; "
                f"{near_misses(name, known)}"
            )
    return configuration


def _read_file(
    configuration: Configuration, name: files.PathLike, search_paths: Sequence[files.PathLike], including: tuple
) -> None:
    path = files.find(name, search_paths)
    if path in including:
        chain = " -> ".join(str(step) for step in (*including, path))
        raise ConfigurationError(f"a gin file includes itself: {chain}. Take one of these includes out.")
    configuration.files.append(path)
    _Reader(configuration, str(path), search_paths, (*including, path)).read(path.read_text(encoding="utf-8"))


class _Written(NamedTuple):
    """A reference (`@name`, `@name()`) or macro (`%name`) as it stands in the text."""

    sign: str
    name: str
    called: bool = False


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Written:
        return _Written("@", scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> _Written:
        return _Written("%", macro_name)


class _Reader:
    """Reads one text into a configuration."""

    def __init__(
        self,
        configuration: Configuration,
        file: str,
        search_paths: Sequence[files.PathLike],
        including: tuple[Path, ...],
    ):
        self._configuration = configuration
        self._file = file
        self._search_paths = search_paths
        self._including = including
        self._names = Names(configuration)

    def read(self, text: str) -> None:
        """Takes in every statement of `text`, in order."""
        try:
            for statement in config_parser.ConfigParser(io.StringIO(text), _Delegate()):
                location = Location(self._file, statement.location.line_num)
                try:
                    self._take(statement, location)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{location}: {error}") from error
        except SyntaxError as error:
            line = f": {error.text.strip()!r}" if error.text else "."
            raise ConfigurationError(f"{self._file}:{error.lineno}: this is not gin ({error.msg}){line}") from error
        except tokenize.TokenError as error:
            raise ConfigurationError(
                f"{self._file}: the text ends inside a value or block ({error.args[0]}). Close its bracket or quote."
            ) from error

    def _take(self, statement: Any, location: Location) -> None:
        match statement:
            case config_parser.ImportStatement():
                self._names.take_import(statement)
            case config_parser.IncludeStatement():
                _read_file(self._configuration, statement.filename, self._search_paths, self._including)
            case config_parser.BlockDeclaration():
                self._names.target(statement.selector)
            case config_parser.BindingStatement():
                self._bind(statement, location)

    def _bind(self, statement: config_parser.BindingStatement, location: Location) -> None:
        scope, selector, parameter, value, _ = statement
        value = self._resolve(value)
        if not parameter or selector == "gin.macro":
            name = scope if parameter else "/".join(filter(None, (scope, selector)))
            bound, name_of_value = self._configuration.macros, name
        else:
            path, target = self._names.target(selector)
            _check_parameter(path, target, parameter)
            key = (tuple(filter(None, scope.split("/"))), target)
            bound, name_of_value = self._configuration.bindings.setdefault(key, {}), parameter
        bound[name_of_value] = Bound(value, location, bound.get(name_of_value))

    def _resolve(self, value: Any) -> Any:
        """`value` with what stands in the text replaced by what it names."""
        match value:
            case _Written("@", name, called):
                *scope, selector = name.split("/")
                path, target = self._names.target(selector)
                return Reference(target, path, tuple(scope), called)
            case _Written("%", "gin.REQUIRED" | "REQUIRED"):
                return Required.REQUIRED
            case _Written("%", name):
                return self._names.constant(name) if "." in name else Macro(name)
            case dict():
                return {self._resolve(key): self._resolve(item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self._resolve(item) for item in value)
        return value


def _check_parameter(path: str, target: Target, parameter: str) -> None:
    accepted = parameters(target)
    if accepted is not None and parameter not in accepted:
        raise ConfigurationError(
            f"{short(path)} has no parameter {parameter!r}; {near_misses(parameter, accepted)} "
            f"It accepts: {', '.join(accepted)}."
        )
