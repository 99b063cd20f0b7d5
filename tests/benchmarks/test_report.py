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


def test_other_benchmarks_are_refused():
    with pytest.raises(ValueError, match="the records are of toy and decode; expected the same benchmark twice"):
        report.compare(record(1.0), record(1.0, benchmark="decode"))


def test_records_without_a_common_result_are_refused():
    with pytest.raises(ValueError, match="the records have the results a and b; expected some in common"):
        report.compare(record(1.0, name="a"), record(1.0, name="b"))


def test_a_missing_file_is_refused_without_a_traceback(tmp_path, capsys):
    assert report.main([str(tmp_path / "no.json"), str(tmp_path / "no.json")]) == 2
    assert "no.json cannot be read" in capsys.readouterr().err
