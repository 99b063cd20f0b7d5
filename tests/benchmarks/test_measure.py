import json
import subprocess

import jax.numpy as jnp
import pytest

from benchmarks import measure
from benchmarks.measure import Spread


def test_a_spread_has_median_and_quartiles_of_its_values():
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert spread.values == (4.0, 1.0, 3.0, 2.0, 5.0)


def test_tasks_are_timed_in_turns_and_warmup_is_not_counted():
    called = []

    def timer(name):
        return lambda: called.append(name) or float(len(called))

    spreads = measure.alternate({"a": timer("a"), "b": timer("b")}, rounds=2, warmup=1)
    assert called == ["a", "b"] * 3
    assert spreads["a"].values == (3.0, 5.0)
    assert spreads["b"].values == (4.0, 6.0)


def test_every_timing_is_preceded_by_a_rest(monkeypatch):
    done = []
    monkeypatch.setattr(measure.time, "sleep", done.append)
    measure.alternate({"a": lambda: done.append("a") or 1.0}, rounds=1, warmup=1, pause=0.5)
    assert done == [0.5, "a"] * 2


def test_ratios_are_taken_within_rounds():
    assert measure.ratio(Spread.of([2.0, 30.0]), Spread.of([1.0, 10.0])).values == (2.0, 3.0)


def test_a_compiled_program_tells_its_bytes_and_runs():
    x = jnp.ones((4, 8))
    program = measure.compile_program(lambda x: x @ x.T, x)
    assert program.bytes["arguments"] == 4 * 8 * 4
    assert program.bytes["outputs"] == 4 * 4 * 4
    assert program.bytes["peak"] == 192 + program.bytes["temporaries"]
    assert program.compiler["flops"] >= 2 * 4 * 4 * 8
    assert program.run(x)[0, 0] == 8.0


def test_donated_arguments_are_counted_once():
    x = jnp.ones((4, 8))
    program = measure.compile_program(lambda x: x + 1, x, donate=(0,))
    assert program.bytes["aliased"] == 128
    assert program.bytes["peak"] == 128 + program.bytes["temporaries"]


def test_rates_are_work_over_seconds():
    seconds = {"matmul": Spread.of([2.0]), "read": Spread.of([4.0])}
    rates = measure.calibration(seconds, {"matmul": 10.0, "read": 8.0})
    assert rates["matmul_flops_per_second"]["median"] == 5.0
    assert rates["read_bytes_per_second"]["median"] == 2.0


def test_the_environment_can_be_written(tmp_path):
    path = measure.write_record(
        tmp_path / "deep" / "r.json", "toy", {"environment": measure.environment(), "results": []}
    )
    record = measure.read_record(path)
    assert set(record["environment"]) == {"time", "machine", "versions", "flags", "git"}
    assert record["environment"]["versions"]["jax"]
    assert [file.name for file in path.parent.iterdir()] == ["r.json"]


def test_the_revision_says_whether_files_changed(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert measure.git_revision(tmp_path)["revision"] is None
    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "message")
    assert measure.git_revision(tmp_path)["changed"] is False
    (tmp_path / "file").write_text("b")
    assert measure.git_revision(tmp_path)["changed"] is True


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="a spread was asked for of no values; expected at least one"):
        Spread.of([])


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_too_few_rounds_are_refused(rounds, warmup):
    with pytest.raises(ValueError, match=f"rounds is {rounds} and warmup {warmup}; expected at least 1 and at least 0"):
        measure.alternate({}, rounds, warmup)


def test_ratios_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="a ratio was asked for of 2 rounds by 1; expected .* the same rounds"):
        measure.ratio(Spread.of([1.0, 2.0]), Spread.of([1.0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "is no record"),
        (json.dumps({"format": 0}), "is no record"),
    ],
)
def test_files_that_are_no_records_are_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"results.json {message}.*expected the results.json that a benchmark wrote"):
        measure.read_record(path)
