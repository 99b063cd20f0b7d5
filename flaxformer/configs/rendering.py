"""Printing an explanation: as tables where rich is installed, as aligned text elsewhere."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from flaxformer.configs.explanation import Explanation
from flaxformer.configs.files import folder
from flaxformer.extras import MissingExtraError, require

_PARAMETERS = ("parameter", "shape", "axes", "size")
_BINDINGS = ("bound", "to", "where", "instead of")


def render(explanation: Explanation) -> str:
    """The explanation as plain text."""
    return "\n\n".join(
        [
            _text(_PARAMETERS, _parameter_rows(explanation)),
            _text(_BINDINGS, _binding_rows(explanation)),
            "\n".join(_totals(explanation)),
        ]
    )


def show(explanation: Explanation) -> None:
    """Prints the explanation, with rich when it is installed."""
    try:
        require("rich", extra="train")
    except MissingExtraError:
        print(render(explanation))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for head, rows in ((_PARAMETERS, _parameter_rows(explanation)), (_BINDINGS, _binding_rows(explanation))):
        table = Table(*head)
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print(table)
    for line in _totals(explanation):
        console.print(line, highlight=False, markup=False)


def _parameter_rows(explanation: Explanation) -> Iterable[tuple[str, ...]]:
    for parameter in explanation.parameters:
        shape = " x ".join(map(str, parameter.shape))
        yield parameter.name, shape, " ".join(str(axis) for axis in parameter.axes or ()), f"{parameter.size:,}"


def _binding_rows(explanation: Explanation) -> Iterable[tuple[str, ...]]:
    for binding in explanation.bindings:
        replaced = ", ".join(f"{_short(place.file)}:{place.line}" for place in binding.replaced)
        yield binding.name, binding.value, f"{_short(binding.location.file)}:{binding.location.line}", replaced


def _totals(explanation: Explanation) -> Iterable[str]:
    leaves = len(explanation.parameters)
    yield f"{explanation.root}: {explanation.model}, from {', '.join(map(_short, explanation.files))}"
    yield f"{explanation.size:,} parameters in {leaves} arrays, {_bytes(explanation.bytes)}"
    yield (
        f"{explanation.flops_per_token:,.0f} FLOPs per token (products of a forward pass over "
        f"{explanation.length} tokens per input; a training step takes about three times that)"
    )


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"


def _short(file: str) -> str:
    """A shipped file by its name, others as they are."""
    path = Path(file)
    return path.relative_to(folder()).as_posix() if path.is_relative_to(folder()) else file


def _text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
