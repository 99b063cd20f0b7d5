"""Pages of documentation as programs: their code runs, and what they say it prints is what it prints.

| block                | what is done with it                                                           |
|----------------------|--------------------------------------------------------------------------------|
| ```` ```python ````  | run, in the order of the page, all in one namespace                            |
| ```` ```text ````    | what the block before it must print; `[...]` stands for anything               |
| ```` ```gin NAME ```` | written to the file NAME in the working directory; any language with a name  |
| others               | not run                                                                        |
"""

import contextlib
import io
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block: its language, the file name behind that, its text, and the line of the page where it begins."""

    language: str
    file: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _BLOCK.finditer(page)
    return [Block(match[1], match[2].strip(), match[3], page.count("\n", 0, match.start(3)) + 1) for match in found]


def run(path: pathlib.Path) -> str:
    """Runs the code of a page and returns what it printed.

    Raises:
      AssertionError: when a block printed something else than the page says.
    """
    names: dict[str, object] = {"__name__": "__page__"}
    printed = [""]
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.file:
            pathlib.Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed.append(_printed_by(block, path, names))
        elif block.language == "text":
            assert matches(block.text, printed[-1]), (
                f"{path.name}:{block.line} promises\n{block.text}\nbut the block before it printed\n{printed[-1]}"
            )
    return "".join(printed)


def _printed_by(block: Block, path: pathlib.Path, names: dict[str, object]) -> str:
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")  # tracebacks name the line of the page
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue()


def matches(promised: str, printed: str) -> bool:
    """Whether `printed` is what the page promised, with anything where that says `[...]`."""
    pattern = re.escape(promised.strip()).replace(re.escape("[...]"), ".*")
    printed = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, printed, flags=re.DOTALL) is not None


def links(page: str) -> list[str]:
    """The links of a page that lead to files, without their anchors; those in code are none."""
    text = _BLOCK.sub("", page)
    return [link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link and not link.startswith("#")]
