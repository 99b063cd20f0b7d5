"""Tables and plots of the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxformer.extras import require


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", words: int = 1
) -> None:
    """Prints a table; its first columns are `words`, the others numbers."""
    escape = require("rich.markup", extra="benchmarks").escape
    table = require("rich.table", extra="benchmarks").Table(title=title, caption=note or None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index >= words else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = require("rich.console", extra="benchmarks").Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width of its own
    console.print(table)


def print_markdown(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", words: int = 1
) -> None:
    """Prints the same as a table in Markdown."""
    rule = ["---:" if index >= words else "---" for index in range(len(columns))]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [columns, rule, *rows])
    print("\n\n".join(part for part in (f"**{title}**", table, note) if part), end="\n\n")


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


def plot_lines(
    path: str | os.PathLike[str],
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    label: str,
) -> Path:
    """Draws lines in panels whose axes are both logarithmic.

    Args:
      path: of the PNG; its folder is made.
      title: above the panels.
      panels: label of the upright axis -> name of the line -> its points.
      label: of the other axis.

    Returns:
      The path.
    """
    figure = require("matplotlib.figure", extra="benchmarks").Figure(
        figsize=(5.5 * len(panels), 4.6), layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (upright, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in lines.items():
            number = names.index(name)
            marker, style = "osDv^P*X"[number % 8], ("-", "--", ":")[number % 3]  # lines that coincide stay visible
            axes.plot(*zip(*points, strict=True), marker=marker, linestyle=style, color=f"C{number % 10}", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.grid(alpha=0.3)
        axes.set_xlabel(label)
        axes.set_ylabel(upright)
        axes.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
