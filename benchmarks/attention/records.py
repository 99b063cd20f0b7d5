"""A record that grows case by case, also over several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure

ALIKE = ("machine", "versions", "flags")


def start(path: Path, settings: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """The record to add to: what the file has, if that is to be kept, else an empty one.

    Raises:
      ValueError: when the file's results come from another machine, other versions, flags or settings.
    """
    record = {"environment": measure.environment(), "settings": dict(settings)}
    empty = {**record, "cases": [], "results": [], "checks": [], "skipped": []}
    if not keep or not path.exists():
        return empty
    found = measure.read_record(path)
    if differing := [name for name in ALIKE if _about(found, name) != _about(empty, name)]:
        raise ValueError(
            f"{path} was measured with another {', '.join(differing)}; expected the same for all cases of a record. "
            "Give another --output, or measure all cases again without --only."
        )
    if found["settings"] != record["settings"]:
        raise ValueError(
            f"{path} has the settings {found['settings']}; expected {record['settings']}. Give another --output."
        )
    return {**found, **record}


def add(record: Mapping[str, Any], measured: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The record with the results of one more case, in place of earlier ones of that case.

    Args:
      record: from `start`.
      measured: from `cases.measure_case`.
      order: the names of all cases; others come before them.
    """
    name = measured["case"]["name"]
    others = {part: [x for x in record[part] if x["case"] != name] for part in ("results", "skipped")}
    cases = [case for case in record["cases"] if case["name"] != name] + [measured["case"]]
    rank = {case: number for number, case in enumerate(order)}
    cases.sort(key=lambda case: rank.get(case["name"], -1))
    rank = {case["name"]: number for number, case in enumerate(cases)}
    merged = {part: sorted(others[part] + measured[part], key=lambda x: rank.get(x["case"], -1)) for part in others}
    return {**record, "cases": cases, **merged}


def _about(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key: value for key, value in record["environment"][part].items() if key != "load"}
