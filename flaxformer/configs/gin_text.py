"""Gin text as statements that know where they stand, so that it can be changed without touching anything else."""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import tokenize
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flaxformer.configs.errors import ConfigurationError

Position = tuple[int, int]
_GONE = "\0"  # marks a line that a statement left, or that went into one above
_SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class Edit(NamedTuple):
    """Text that takes the place of what stands between two positions (line from 1, column from 0)."""

    start: Position
    end: Position
    text: str


class Name(NamedTuple):
    """A dotted name, without the scopes before it.

    Attributes:
      sign: `''` for what is bound, `'@'` for a reference, `'%'` for a macro.
      dotted: the name.
      start, end: where it stands.
      end_of_call: the end of its `()`, or of itself.
    """

    sign: str
    dotted: str
    start: Position
    end: Position
    end_of_call: Position

    @property
    def root(self) -> str:
        return self.dotted.partition(".")[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Statement:
    """One statement: an import, an include, a binding, the opening of a block, or a binding in a block."""

    tokens: list[tokenize.TokenInfo]
    source: str

    @property
    def first(self) -> int:
        return self.tokens[0].start[0]

    @property
    def last(self) -> int:
        return self.tokens[-1].end[0]

    @property
    def indented(self) -> bool:
        return self.tokens[0].start[1] > 0

    @property
    def opens_block(self) -> bool:
        return self.tokens[-1].string == ":" and not self.indented

    @functools.cached_property
    def imported(self) -> tuple[str, str] | None:
        """The name that an import binds, and the module."""
        words = [token.string for token in self.tokens]
        if self.indented or words[0] not in ("import", "from") or len(words) < 2 or words[1] in "=.:/":
            return None
        alias = words[-1] if "as" in words else None
        words = words[: words.index("as")] if alias else words
        if words[0] == "import":
            module = "".join(words[1:])
            return (alias, module) if alias else (words[1], words[1])
        package, name = "".join(words[1 : words.index("import")]), words[-1]
        return alias or name, f"{package}.{name}"

    @functools.cached_property
    def included(self) -> str | None:
        """The path in an include."""
        if len(self.tokens) == 2 and self.tokens[0].string == "include" and self.tokens[1].type == tokenize.STRING:
            return ast.literal_eval(self.tokens[1].string)
        return None

    @functools.cached_property
    def selector(self) -> Name | None:
        """What is bound, or whose block is opened; None in other statements."""
        return None if self.imported or self.included is not None or self.indented else _name(self.tokens, 0, "")

    @functools.cached_property
    def values(self) -> list[Name]:
        """References and macros."""
        found = (_name(self.tokens, i + 1, token.string) for i, token in enumerate(self.tokens) if token.string in "@%")
        return [name for name in found if name is not None]

    @property
    def value_text(self) -> str:
        """What stands behind `=`, as it is written."""
        equals = next((token for token in self.tokens if token.string == "="), self.tokens[-1])
        lines = self.source.split("\n")[equals.end[0] - 1 : self.last]
        lines[-1] = lines[-1][: self.tokens[-1].end[1]]
        return "\n".join([lines[0][equals.end[1] :], *lines[1:]]).strip()


def _name(tokens: list[tokenize.TokenInfo], at: int, sign: str) -> Name | None:
    """The name whose first scope or part is token `at`."""
    while at + 2 < len(tokens) and tokens[at + 1].string == "/":
        at += 2
    if at >= len(tokens) or tokens[at].type != tokenize.NAME:
        return None
    end = at
    while end + 2 < len(tokens) and tokens[end + 1].string == "." and tokens[end + 2].type == tokenize.NAME:
        end += 2
    called = [token.string for token in tokens[end + 1 : end + 3]] == ["(", ")"]
    dotted = "".join(token.string for token in tokens[at : end + 1])
    return Name(sign, dotted, tokens[at].start, tokens[end].end, tokens[end + 2 * called].end)


def parse(text: str, file: str) -> list[Statement]:
    """The statements of a gin text, in order.

    Raises:
      ConfigurationError: a `ValueError`, for a text that is not gin.
    """
    statements: list[Statement] = []
    tokens: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE and tokens:
                statements.append(Statement(tokens, text))
                tokens = []
            elif token.type not in _SKIPPED and token.type != tokenize.NEWLINE:
                tokens.append(token)
    except (tokenize.TokenError, SyntaxError) as error:
        raise ConfigurationError(
            f"{file} is not gin ({error.args[0]}): expected statements. Correct it first."
        ) from error
    block = False
    for statement in statements:
        if statement.indented and not block:
            raise ConfigurationError(
                f"{file}:{statement.first} is not gin: an indented line belongs to no block. Take its indentation out."
            )
        block = statement.opens_block or statement.indented
    return statements


def rewrite(
    text: str,
    edits: Iterable[Edit],
    commented: Iterable[Statement],
    removed: Iterable[Statement],
    inserted: Mapping[int, list[str]],
) -> str:
    """`text` with edits made, statements turned into comments, and lines put behind others.

    Args:
      text: the old text.
      edits: do not overlap. Those in commented statements are left out.
      commented: keep their text.
      removed: leave the comments on their lines.
      inserted: new lines by the number of the old line before them; 0 for the top.
    """
    lines = text.split("\n")
    edits = [*edits, *(Edit(s.tokens[0].start, s.tokens[-1].end, _GONE) for s in removed)]
    hidden = {number for statement in commented for number in range(statement.first, statement.last + 1)}
    for start, end, new in sorted(edits, reverse=True):
        if start[0] not in hidden:
            joined = lines[start[0] - 1][: start[1]] + new + lines[end[0] - 1][end[1] :]
            lines[start[0] - 1] = joined
            for number in range(start[0], end[0]):
                lines[number] = _GONE
    result = list(inserted.get(0, []))
    for number, line in enumerate(lines, 1):
        if line.startswith(_GONE):
            line = line.lstrip(f"{_GONE} ")
        if line or not lines[number - 1].startswith(_GONE):
            result.append(f"# {line}" if number in hidden else line)
        result.extend(inserted.get(number, []))
    return "\n".join(result)
