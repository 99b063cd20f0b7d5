"""Tables and plots of a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import show
from benchmarks.attention.workload import Workload

RESULT_COLUMNS = (
    "workload", "contender", "ms [quartiles]", "device ms", "GFLOP/s", "of matmul", "temporary MiB", "compile s",
    "error",
)  # fmt: skip
CHECK_COLUMNS = ("what", "must", "aim", "found [quartiles]", "verdict")


def print_record(record: Mapping[str, Any], markdown: bool = False) -> None:
    """Prints the results case by case, then what they were held to and what was left out."""
    print_table = show.print_markdown if markdown else show.print_table
    for case in record["cases"]:
        rows = [_result_row(result) for result in record["results"] if result["case"] == case["name"]]
        alike = all(row[0] == case["name"] for row in rows)  # then the title says it
        columns, rows = RESULT_COLUMNS[alike:], [row[alike:] for row in rows]
        print_table(f"{case['name']}: {case['rounds']} rounds", columns, rows, _rates(case), words=2 - alike)
    if record["checks"]:
        print_table("checks", CHECK_COLUMNS, [_check_row(check) for check in record["checks"]])
    for skipped in record["skipped"]:
        print(f"left out: {skipped['name']}: {skipped['reason']}")


def plot_record(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws seconds and temporaries against length, a figure for each kind of workload that has several lengths.

    Returns:
      the paths.
    """
    kinds: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for result in record["results"]:
        kind = Workload(**result["workload"] | {"length": 1}).name.replace("-1", "", 1)
        kinds.setdefault(kind, {}).setdefault(result["contender"], {})[result["workload"]["length"]] = result
    written = []
    for kind, contenders in kinds.items():
        if len({length for found in contenders.values() for length in found}) < 2:
            continue
        panels = {label: _lines(contenders, label) for label in ("seconds", "temporary MiB")}
        path = folder / f"{kind.replace(':', '')}.png"
        written.append(show.plot_lines(path, f"{kind}, {_title(record)}", panels, "length"))
    return written


def _lines(
    contenders: Mapping[str, Mapping[int, Mapping[str, Any]]], label: str
) -> dict[str, list[tuple[float, float]]]:
    lines = {}
    for name, found in contenders.items():
        points = [(length, _height(result, label)) for length, result in sorted(found.items())]
        lines[name] = [(x, y) for x, y in points if y]
    return {name: points for name, points in lines.items() if points}


def _height(result: Mapping[str, Any], label: str) -> float:
    if label == "seconds":
        return result["seconds"]["median"]
    return result["bytes"]["temporaries"] / 2**20 if result["bytes"] else 0.0


def _title(record: Mapping[str, Any]) -> str:
    machine = record["environment"]["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {', '.join(sorted(set(machine['devices'])))}"


def _result_row(result: Mapping[str, Any]) -> list[str]:
    size, compiling = result["bytes"] or {}, result["compile_seconds"]
    device = result["device_seconds"]
    milliseconds = {name: 1e3 * result["seconds"][name] for name in ("median", "low", "high")}
    return [
        Workload(**result["workload"]).name,
        result["contender"],
        show.spread(milliseconds, places=2),
        show.number(None if device is None else 1e3 * device, 3),
        show.number(result["flops_per_second"] / 1e9, 1),
        f"{result['matmul_share']:.0%}",
        show.mebibytes(size.get("temporaries")),
        show.number(None if compiling is None else result["trace_seconds"] + compiling),
        "–" if result["error"] is None else f"{result['error']:.0e}",
    ]


def _check_row(check: Mapping[str, Any]) -> list[str]:
    sign, found = "≥" if check["at_least"] else "≤", check["found"]
    bounds = [f"{sign} {check[name]:g}" for name in ("must", "aim")]
    return [check["what"], *bounds, "–" if found is None else show.spread(found, places=2), check["verdict"]]


def _rates(case: Mapping[str, Any]) -> str:
    found = case["calibration"]
    matmul, read = (found[name]["median"] for name in ("matmul_flops_per_second", "read_bytes_per_second"))
    where = f"{found['matmul']}: {matmul / 1e9:,.0f} GFLOP/s, memory read {read / 1e9:,.1f} GB/s, in the same rounds"
    return f"wall time; {where}"
