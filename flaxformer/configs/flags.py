"""T5X's command line conventions for gin, for any program that uses argparse.

`--gin_file` (repeatable; later files win), `--gin_search_paths` (a comma-separated list), `--gin_bindings`
(repeatable), and `--gin.NAME=VALUE`, short for `--gin_bindings="NAME = VALUE"`. Files come first, then bindings. Values
are gin literals, so a string keeps its quotes: `--gin.MODEL_DIR="'runs/1'"`.
"""

import argparse
from collections.abc import Sequence

from flaxformer.configs.configuration import Configuration
from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.parsing import read

_PREFIX = "--gin."


def rewrite(arguments: Sequence[str]) -> list[str]:
    """Rewrites each `--gin.NAME=VALUE` as a `--gin_bindings`.

    Raises:
      ConfigurationError: for one without `=`.

    >>> rewrite(["--gin.DROPOUT_RATE=0.1", "--dry_run"])
    ['--gin_bindings=DROPOUT_RATE = 0.1', '--dry_run']
    """
    return [_binding(argument) if argument.startswith(_PREFIX) else argument for argument in arguments]


def _binding(argument: str) -> str:
    name, equals, value = argument.removeprefix(_PREFIX).partition("=")
    if not equals or not name.strip():
        raise ConfigurationError(
            f"the flag {argument!r} has no '='; expected {_PREFIX}NAME=VALUE, for example {_PREFIX}DROPOUT_RATE=0.1."
        )
    return f"--gin_bindings={name.strip()} = {value}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the gin flags to `parser`; parse what `rewrite` returns."""
    group = parser.add_argument_group("gin")
    group.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="a gin file, or the name of a shipped one"
    )
    group.add_argument(
        "--gin_search_paths",
        type=lambda text: [path for path in text.split(",") if path],
        default=["."],
        metavar="DIR,DIR",
        help="folders to look for gin files in, before the shipped ones",
    )
    group.add_argument(
        "--gin_bindings", action="append", default=[], metavar="'NAME = VALUE'", help="a binding; --gin.NAME=VALUE too"
    )


def gin_files(arguments: argparse.Namespace, positional: Sequence[str] = ()) -> list[str]:
    """The files that the flags name, after those given without a flag.

    Raises:
      ConfigurationError: when there is none.
    """
    files = [*positional, *arguments.gin_file]
    if not files:
        raise ConfigurationError("no gin file was given; expected --gin_file=FILE at least once.")
    return files


def configuration(arguments: argparse.Namespace, macros: Sequence[str] = ()) -> Configuration:
    """Reads what the parsed flags name; `macros` as in `flaxformer.configs.read`.

    Raises:
      ConfigurationError: without any file, and for whatever is wrong in them.
    """
    return read(gin_files(arguments), arguments.gin_bindings, arguments.gin_search_paths, macros)
