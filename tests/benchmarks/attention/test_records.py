import json

import pytest

from benchmarks import measure
from benchmarks.attention import records


def measured(name, seconds=1.0):
    return {
        "case": {"name": name},
        "results": [{"name": f"{name}: auto", "case": name, "seconds": seconds}],
        "skipped": [{"name": f"{name}: torch", "case": name, "reason": "none"}],
    }


def names(record, part):
    return [entry["name"] for entry in record[part]]


def test_a_case_replaces_its_earlier_results_and_keeps_its_place(tmp_path):
    record = records.start(tmp_path / "results.json", {}, keep=False)
    for name in ("b", "a"):
        record = records.add(record, measured(name), ["a", "b"])
    record = records.add(record, measured("a", 2.0), ["a", "b"])
    assert names(record, "cases") == ["a", "b"]
    assert names(record, "results") == ["a: auto", "b: auto"]
    assert names(record, "skipped") == ["a: torch", "b: torch"]
    assert record["results"][0]["seconds"] == 2.0


def test_a_file_is_kept_only_if_asked(tmp_path):
    path = tmp_path / "results.json"
    record = records.add(records.start(path, {"seed": 0}, keep=True), measured("a"), ["a"])
    measure.write_record(path, "attention", record)
    assert names(records.start(path, {"seed": 0}, keep=True), "results") == ["a: auto"]
    assert names(records.start(path, {"seed": 0}, keep=False), "results") == []


def test_results_of_other_machines_or_settings_are_not_mixed(tmp_path):
    path = tmp_path / "results.json"
    record = records.start(path, {"seed": 0}, keep=False)
    measure.write_record(path, "attention", record)
    with pytest.raises(ValueError, match="has the settings {'seed': 0}; expected {'seed': 1}. Give another --output"):
        records.start(path, {"seed": 1}, keep=True)
    record = json.loads(path.read_text())
    record["environment"]["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was measured with another versions; expected the same for all cases"):
        records.start(path, {"seed": 0}, keep=True)
