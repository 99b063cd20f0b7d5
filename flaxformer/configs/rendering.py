"""Printing an explanation: as tables on a terminal where rich is installed, as aligned text elsewhere."""

import collections
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flaxformer.configs.explanation import Explanation
from flaxformer.configs.files import folder
from flaxformer.extras import MissingExtraError, require

_PARAMETERS = ("parameter", "times", "shape", "axes", "size")
_BINDINGS = ("bound", "to", "where", "instead of")
_LAYER = re.compile(r"(?<=layers_)(\d+)")


def render(explanation: Explanation) -> str:
    """The explanation as plain text; parameters that are alike in all layers share a line."""
    return "\n\n".join(
        [
            _text(_PARAMETERS, _parameter_rows(explanation)),
            _text(_BINDINGS, _binding_rows(explanation)),
            "\n".join(_totals(explanation)),
        ]
    )


def show(explanation: Explanation) -> None:
    """Prints the explanation, as tables of rich when standard output is a terminal and rich is installed."""
    try:
        console = require("rich.console", extra="train").Console() if sys.stdout.isatty() else None
    except MissingExtraError:
        console = None
    if console is None:
        print(render(explanation))
        return
    make_table, escape = require("rich.table", extra="train").Table, require("rich.markup", extra="train").escape
    for head, rows in ((_PARAMETERS, _parameter_rows(explanation)), (_BINDINGS, _binding_rows(explanation))):
        table = make_table()
        for title in head:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for line in _totals(explanation):
        console.print(line, highlight=False, markup=False)


def _parameter_rows(explanation: Explanation) -> Iterable[tuple[str, ...]]:
    alike = collections.defaultdict(list)
    for parameter in explanation.parameters:
        key = (_LAYER.sub("*", parameter.name), parameter.shape, parameter.axes)
        alike[key].append(parameter)
    for (name, shape, axes), found in alike.items():
        size = sum(parameter.size for parameter in found)
        name = name if len(found) > 1 else found[0].name
        axis_names = " ".join(str(axis) for axis in axes or ())
        yield name, str(len(found)), " x ".join(map(str, shape)) or "scalar", axis_names, f"{size:,}"


def _binding_rows(explanation: Explanation) -> Iterable[tuple[str, ...]]:
    for binding in explanation.bindings:
        replaced = ", ".join(f"{_short(place.file)}:{place.line}" for place in binding.replaced)
        yield binding.name, binding.value, f"{_short(binding.location.file)}:{binding.location.line}", replaced


def _totals(explanation: Explanation) -> Iterable[str]:
    leaves = len(explanation.parameters)
    yield f"{explanation.root}: {explanation.model}, from {', '.join(map(_short, explanation.files))}"
    yield f"{explanation.size:,} parameters in {leaves} arrays, {_bytes(explanation.bytes)}"
    inputs = ", ".join(f"{name} {' x '.join(map(str, each.shape))}" for name, each in explanation.inputs.items())
    of_what = "(products of a forward pass; a training step takes about three times that)"
    if explanation.tokens is None:
        yield f"{explanation.flops:,} FLOPs for {inputs} {of_what}"
    else:
        yield f"{explanation.flops_per_token:,.0f} FLOPs per token for {inputs} {of_what}"


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
