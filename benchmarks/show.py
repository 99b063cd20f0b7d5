"""Tables and plots of the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxformer.extras import require


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Prints a table; the first column is text, the others are numbers."""
    table = require("rich.table", extra="benchmarks").Table(title=title, caption=note or None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = require("rich.console", extra="benchmarks").Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width of its own
    console.print(table)


def mebibytes(count: float | None) -> str:
    """Bytes in MiB, for a table; a dash for None.

    >>> mebibytes(3 * 2**20)
    '3.0'
    """
    return "–" if count is None else f"{count / 2**20:,.1f}"


def number(value: float | None, places: int = 2) -> str:
    """A number for a table; a dash for None."""
    return "–" if value is None else f"{value:,.{places}f}"


def spread(found: Mapping[str, Any], places: int = 3) -> str:
    """A spread from a record: the median, and the quartiles in brackets."""
    return f"{found['median']:.{places}f} [{found['low']:.{places}f}, {found['high']:.{places}f}]"


def plot_bars(path: str | os.PathLike[str], title: str, groups: Mapping[str, Mapping[str, Any]], label: str) -> Path:
    """Draws horizontal bars with quartiles, one panel per group.

    Args:
      path: of the PNG; its folder is made.
      title: above the panels.
      groups: name of the panel -> name of the bar -> a spread from a record.
      label: of the axis that the bars lie along.

    Returns:
      The path.
    """
    figure_module = require("matplotlib.figure", extra="benchmarks")  # without pyplot: no window, no global state
    tallest = max(len(bars) for bars in groups.values())
    figure = figure_module.Figure(figsize=(5.5 * len(groups), 1.9 + 0.55 * tallest), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, (name, bars) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        medians = [bar["median"] for bar in bars.values()]
        errors = [
            [bar["median"] - bar["low"] for bar in bars.values()],
            [b["high"] - b["median"] for b in bars.values()],
        ]
        colors = ["tab:blue" if bar == "flaxformer" else "tab:gray" for bar in bars]
        drawn = axes.barh(list(bars), medians, xerr=errors, color=colors, capsize=4)
        axes.bar_label(drawn, [f"{value:.3g}" for value in medians], padding=6)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_title(name)
        axes.set_xlabel(label)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
