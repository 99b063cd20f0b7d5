"""`flaxformer migrate OLD.gin > new.gin`: a gin file written for T5X, in this library's names.

Imports and includes are rewritten, and with them every name that they bring; comments, order and layout stay. What has
no counterpart is turned into a comment, and listed at the top with what to write instead. A file without old names
comes out as it went in, so migrating twice changes nothing.

The tables are in `old_names`; what T5X's names mean here is in `flaxformer.t5x`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator

from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.gin_text import parse
from flaxformer.configs.migrator import HEADING, Migrated, Migrator, Note

__all__ = ["HEADING", "Migrated", "Note", "add_arguments", "migrate", "run"]


def migrate(text: str, file: str = "the file") -> Migrated:
    """Rewrites the text of a gin file.

    Args:
      text: of the old file.
      file: its name, for messages.

    Raises:
      ConfigurationError: a `ValueError`, for a text that is not gin.

    >>> old = "from __gin__ import dynamic_registration\\nfrom t5x import models\\nMODEL = @models.DecoderOnlyModel()"
    >>> print(migrate(old).text)
    from __gin__ import dynamic_registration
    from flaxformer.training import models
    MODEL = @models.DecoderOnlyModel()
    """
    return Migrator(text, parse(text, file)).run()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `flaxformer migrate`."""
    parser.add_argument("file", metavar="OLD.gin", help="a gin file written for T5X; the new one is printed")


def run(arguments: argparse.Namespace) -> None:
    """Prints the migrated file, and on standard error what could not be mapped.

    Args:
      arguments: with the attributes that `add_arguments` adds.

    Raises:
      ConfigurationError: a `ValueError`, for a file that is not there or is not gin.
    """
    path = pathlib.Path(arguments.file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path} ({error}); expected a gin file. Correct the path.") from error
    migrated = migrate(text, str(path))
    print(migrated.text, end="")
    for line in _reports(path, migrated):
        print(line, file=sys.stderr)


def _reports(path: pathlib.Path, migrated: Migrated) -> Iterator[str]:
    for note in migrated.notes:
        yield f"{path}:{note.line}: not mapped: {note.what}: {note.why}"
    for sentence in migrated.advice:
        yield f"{path}: {sentence}"
