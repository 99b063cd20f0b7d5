"""Compares two records of the same benchmark, for example before and after a change.

    python -m benchmarks.report before.json after.json

The ratio is the first's seconds over the second's: above 1, the second is faster. The two were not measured in turns,
so the range given goes from the least to the most that their quartiles allow; a range around 1 shows nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure, show


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each result that both records have: name, both spreads, ratio of seconds, and of what else both know.

    Raises:
      ValueError: for records of different benchmarks, and when they share no result.
    """
    if first["benchmark"] != second["benchmark"]:
        raise ValueError(
            f"the records are of {first['benchmark']} and {second['benchmark']}; expected the same benchmark twice."
        )
    others = {result["name"]: result for result in second["results"]}
    rows = [_compare(result, others[result["name"]]) for result in first["results"] if result["name"] in others]
    if not rows:
        names = [", ".join(result["name"] for result in record["results"]) for record in (first, second)]
        raise ValueError(f"the records have the results {names[0]} and {names[1]}; expected some in common.")
    return rows


def _compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    a, b = first["seconds"], second["seconds"]
    return {
        "name": first["name"],
        "first": a,
        "second": b,
        "ratio": {"median": a["median"] / b["median"], "low": a["low"] / b["high"], "high": a["high"] / b["low"]},
        "share": (first.get("matmul_share"), second.get("matmul_share")),
        "temporaries": ((first.get("bytes") or {}).get("temporaries"), (second.get("bytes") or {}).get("temporaries")),
        "compiling": (_compiling(first), _compiling(second)),
    }


def _compiling(result: Mapping[str, Any]) -> float | None:
    """Seconds to trace and compile; None where nobody told."""
    tracing, compiling = (result.get(name) for name in ("trace_seconds", "compile_seconds"))
    return None if tracing is None or compiling is None else tracing + compiling


def compare_checks(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For each check that both records have, a row: what, must, and what both found and how that was judged."""
    others = {check["what"]: check for check in second.get("checks", [])}
    pairs = [(check, others[check["what"]]) for check in first.get("checks", []) if check["what"] in others]
    return [
        (a["what"], f"{'≥' if a['at_least'] else '≤'} {a['must']:g}", *(_found(check) for check in (a, b)))
        for a, b in pairs
    ]


def _found(check: Mapping[str, Any]) -> str:
    return check["verdict"] if check["found"] is None else f"{check['found']['median']:.2f} {check['verdict']}"


def unmatched(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """A line for each of the two records that has results which the other lacks."""
    names = [[result["name"] for result in record["results"]] for record in (first, second)]
    alone = {"first": set(names[0]) - set(names[1]), "second": set(names[1]) - set(names[0])}
    return [f"only in the {which}: {', '.join(sorted(found))}" for which, found in alone.items() if found]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What else differs between the runs, a line for each setting, version, flag or property of the machine."""
    found = []
    for part in ("settings", "versions", "flags", "machine"):
        a, b = (record["settings"] if part == "settings" else record["environment"][part] for record in (first, second))
        for key in sorted({*a, *b} - {"load"}):
            if a.get(key) != b.get(key):
                found.append(f"{part} {key}: {a.get(key)} -> {b.get(key)}")
    return found


def print_report(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Prints the comparison as tables, and what else differs below them."""
    rows = [
        (
            row["name"],
            show.spread(row["first"]),
            show.spread(row["second"]),
            show.spread(row["ratio"], places=2),
            " -> ".join("–" if share is None else f"{share:.0%}" for share in row["share"]),
            " -> ".join(map(show.mebibytes, row["temporaries"])),
            " -> ".join(map(show.number, row["compiling"])),
        )
        for row in compare(first, second)
    ]
    columns = ("result", "first s", "second s", "first / second", "of matmul", "temporary MiB", "compile s")
    revisions = [(record["environment"]["git"]["revision"] or "unknown")[:9] for record in (first, second)]
    show.print_table(f"{first['benchmark']}: {revisions[0]} against {revisions[1]}", columns, rows)
    if checks := compare_checks(first, second):
        show.print_table("checks", ("what", "must", "first", "second"), checks)
    for line in unmatched(first, second) + differences(first, second):
        print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares two files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("first", help="results.json of one run")
    parser.add_argument("second", help="results.json of the other")
    parsed = parser.parse_args(arguments)
    try:
        print_report(measure.read_record(parsed.first), measure.read_record(parsed.second))
    except (ValueError, ImportError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
