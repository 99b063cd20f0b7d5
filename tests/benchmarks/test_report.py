import pytest

from benchmarks import measure, report


def record(median, *, name="flaxformer/train", cores=2, benchmark="toy"):
    seconds = {"median": median, "low": 0.5 * median, "high": 2 * median, "values": [median]}
    return {
        "benchmark": benchmark,
        "environment": {"machine": {"cores": cores}, "versions": {}, "flags": {}, "git": {"revision": None}},
        "settings": {},
        "results": [{"name": name, "seconds": seconds, "matmul_share": 0.5, "bytes": {"temporaries": 2**20}}],
    }


def test_ratios_come_with_the_range_that_the_quartiles_allow():
    (row,) = report.compare(record(4.0), record(2.0))
    assert row["ratio"] == {"median": 2.0, "low": 0.5, "high": 8.0}


def test_two_files_are_compared_in_a_table(tmp_path, capsys):
    paths = [
        str(measure.write_record(tmp_path / f"{number}.json", "toy", record(seconds, cores=number)))
        for number, seconds in enumerate([4.0, 2.0])
    ]
    assert report.main(paths) == 0
    printed = capsys.readouterr().out
    assert "2.00 [0.50, 8.00]" in printed
    assert "machine cores: 0 -> 1" in printed


def test_results_that_only_one_record_has_are_left_out():
    first = record(1.0)
    first["results"].append({**first["results"][0], "name": "other"})
    assert [row["name"] for row in report.compare(first, record(1.0))] == ["flaxformer/train"]


def test_results_that_only_one_record_has_are_named(tmp_path, capsys):
    first, second = record(1.0), record(1.0)
    second["results"].append({**second["results"][0], "name": "other"})
    paths = [str(measure.write_record(tmp_path / name, "toy", found)) for name, found in (("a", first), ("b", second))]
    assert report.main(paths) == 0
    printed = capsys.readouterr().out
    assert "only in the second: other" in printed and "only in the first" not in printed


def test_checks_are_compared():
    def checked(median, verdict):
        check = {"what": "speed", "must": 2.0, "at_least": True, "verdict": verdict}
        return record(1.0) | {"checks": [check | {"found": median and {"median": median}}]}

    rows = report.compare_checks(checked(1.5, "miss"), checked(3.0, "pass"))
    assert rows == [("speed", "≥ 2", "1.50 miss", "3.00 pass")]
    assert report.compare_checks(checked(None, "not measured"), checked(3.0, "pass"))[0][2] == "not measured"
    assert report.compare_checks(record(1.0), checked(3.0, "pass")) == []


def test_time_to_compile_is_compared_where_both_tell():
    compiled = record(1.0)
    compiled["results"][0] |= {"trace_seconds": 0.5, "compile_seconds": 1.0}
    (row,) = report.compare(compiled, record(1.0))
    assert row["compiling"] == (1.5, None)


def test_other_benchmarks_are_refused():
    with pytest.raises(ValueError, match="the records are of toy and decode; expected the same benchmark twice"):
        report.compare(record(1.0), record(1.0, benchmark="decode"))


def test_records_without_a_common_result_are_refused():
    with pytest.raises(ValueError, match="the records have the results a and b; expected some in common"):
        report.compare(record(1.0, name="a"), record(1.0, name="b"))


def test_a_missing_file_is_refused_without_a_traceback(tmp_path, capsys):
    assert report.main([str(tmp_path / "no.json"), str(tmp_path / "no.json")]) == 2
    assert "no.json cannot be read" in capsys.readouterr().err
