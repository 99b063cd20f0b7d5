"""Structure only: nothing here looks at how long anything took."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.attention import __main__ as attention
from benchmarks.attention import musts, programs
from benchmarks.attention.cases import Case, Entry
from benchmarks.attention.workload import Workload
from benchmarks.peers import client

TINY = ["--heads", "2", "--head_dim", "4", "--rounds", "1", "--warmup", "0", "--pause", "0"]
RESULT = {
    "name", "case", "contender", "workload", "seconds", "runs_per_timing", "flops", "flops_per_second", "matmul_share",
    "trace_seconds", "compile_seconds", "first_call_seconds", "bytes", "device_seconds", "error", "error_against",
}  # fmt: skip
VARIANT = """
import jax.numpy as jnp

def uniform(query, key, value, *, mask=None, bias=None, gain=1.0):
    return jnp.broadcast_to(gain * value.mean(1, keepdims=True), query.shape)
"""
GIN = """
from __gin__ import dynamic_registration
import my_uniform
VARIANTS = {'uniform': @my_uniform.uniform}
my_uniform.uniform.gain = 2.0
"""
TORCH = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from serve import serve, settings

def make_tasks():
    for asked in settings()["entries"].values():
        arrays = np.load(asked["arrays"])
        assert set(arrays.files) == {{"query", "key", "value", "cotangent"}} and asked["causal"]
        np.savez(asked["results"], output=0 * arrays["query"])
    return {{name: ((lambda: None), {{}}) for name in settings()["entries"]}}, 0

serve("torch", ["pip"], make_tasks)
"""


@pytest.fixture(autouse=True, scope="module")
def small_calibration():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MATMUL_SIZE", 16)
        patch.setattr(measure, "READ_FLOATS", 64)
        patch.setattr(measure, "times_for", lambda seconds: 1)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory, small_calibration):
    """One run with a variant and a stand-in for PyTorch: its record, its folder and what was printed."""
    folder = tmp_path_factory.mktemp("attention")
    (folder / "my_uniform.py").write_text(VARIANT)
    (folder / "mine.gin").write_text(GIN)
    (folder / "torch.py").write_text(TORCH.format(folder=str(Path(client.__file__).parent)))
    arguments = ["--gin_file", str(folder / "mine.gin"), "--peer-python", f"torch={sys.executable}"]
    arguments += ["--contenders", "auto,cudnn,uniform,torch", "--lengths", "8,16", "--programs", "forward"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.syspath_prepend(folder)
        patch.setattr(programs, "SCRIPT", folder / "torch.py")
        assert attention.main([*arguments, *TINY, "--output", str(folder)]) == 0
    return measure.read_record(folder / "results.json"), folder, printed.getvalue()


def test_a_record_has_all_documented_keys(ran):
    record, _, _ = ran
    assert set(record) == {"benchmark", "format", "environment", "settings", "cases", "results", "checks", "skipped"}
    assert set(record["settings"]) == {"preset", "seed", "flops_counted_by"}
    for result in record["results"]:
        assert set(result) == RESULT
    for case in record["cases"]:
        assert set(case) == {"name", "time", "load", "git", "peers", "rounds", "warmup", "pause", "calibration"}
        assert set(case["peers"]["torch"]) == {"pip"}


def test_contenders_of_all_kinds_are_in_one_table(ran):
    record, _, printed = ran
    assert [(r["contender"], r["workload"]["length"], r["error_against"]) for r in record["results"]] == [
        (name, length, against)
        for length in (8, 16)
        for name, against in (("auto", "definition"), ("uniform", "itself"), ("torch", "definition"))
    ]
    errors = {result["contender"]: result["error"] for result in record["results"]}
    assert errors["auto"] < 1e-5 and errors["uniform"] < 1e-5 and errors["torch"] == 1.0
    assert all(word in printed for word in ("ms [quartiles]", "uniform", "in the same rounds", "results.json"))


def test_what_refuses_is_left_out_with_its_reason(ran):
    record, _, printed = ran
    assert [skipped["name"].partition(": ")[2] for skipped in record["skipped"]] == ["cudnn", "cudnn"]
    assert all("float32 is not supported" in skipped["reason"] for skipped in record["skipped"])
    assert "left out: forward-8-heads=2-head_dim=4: cudnn:" in printed


def test_lengths_are_plotted(ran):
    assert (ran[1] / "forward-heads=2-head_dim=4.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_can_be_shown_again(ran, capsys):
    assert attention.main(["--show", str(ran[1] / "results.json"), "--markdown"]) == 0
    assert "| uniform |" in capsys.readouterr().out


def test_cases_are_measured_one_by_one_into_one_record(tmp_path, monkeypatch, capsys):
    short = Entry("reference", Workload("backward", 8, heads=2, head_dim=4))
    grown = Entry("reference", Workload("backward", 8, heads=2, head_dim=4, bias="t5"))
    checks = [musts.Check("a", "one", short, 1.0, 0.5), musts.Check("b", "two", grown, 1e9, 1e8, (short,))]
    monkeypatch.setattr(musts, "CHECKS", checks)
    assert attention.main(["--preset", "musts", "--list"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    for case in ("two", "one"):
        arguments = ["--preset", "musts", "--only", case, *TINY]
        assert attention.main([*arguments, "--output", str(tmp_path)]) == 0
    record = measure.read_record(tmp_path / "results.json")
    assert [case["name"] for case in record["cases"]] == ["one", "two"]
    assert [check["verdict"] for check in record["checks"]] == ["aim", "aim"]
    assert max(result["error"] for result in record["results"]) < 1e-5


def test_memory_that_is_not_there_is_not_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(programs, "_available_bytes", lambda: 1000.0)
    assert attention.main([*TINY, "--lengths", "8", "--programs", "forward", "--contenders", "reference"]) == 2
    assert "has nothing to measure: forward-8-heads=2-head_dim=4: reference: needs 0.0 GiB" in capsys.readouterr().err


def test_torch_is_left_out_where_no_interpreter_is_known(monkeypatch, capsys):
    monkeypatch.delenv("BENCHMARK_PEER_TORCH", raising=False)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert attention.main([*TINY, "--lengths", "8", "--contenders", "torch"]) == 2
    assert "torch: no interpreter that has it is known; give --peer-python torch=PATH" in capsys.readouterr().err


def test_torch_refuses_biases_by_rule():
    assert programs.refuse_torch(Workload(bias="t5")) == "takes biases as arrays only, not t5"
    assert programs.refuse_torch(Workload(bias="array")) is None


def test_torch_gets_masks_and_biases_as_arrays():
    workload = Workload(length=6, mask="window:2", bias="array", heads=2, head_dim=4)
    arrays = programs._torch_arrays(workload, workload.arrays(), causal=False)
    assert arrays["mask"].sum() == 1 + 5 * 2
    assert arrays["bias"].shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "flash"], "contenders has 'flash'; expected some of auto, reference"),
        (["--lengths", "16,a"], "lengths is '16,a'; expected numbers with commas between"),
        (["--programs", "sideways"], "program is 'sideways'; expected one of forward, backward, decode"),
        (["--only", "forward-9"], "--only has forward-9; expected some of forward-128, forward-512"),
        (["--gin_file", "no.gin"], "no gin file 'no.gin'"),
        (["--show", "no.json"], "no.json cannot be read"),
        (["--peer-python", "hf_torch=python3"], "the peer interpreter is 'hf_torch=python3'; expected NAME=PATH"),
    ],
)
def test_bad_input_is_refused_without_a_traceback(arguments, message, capsys):
    assert attention.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_case_names_the_workload_only_where_it_must():
    forward, backward = Workload("forward", 8), Workload("backward", 8)
    case = Case(forward.name, (Entry("auto", forward), Entry("auto", backward)))
    assert [case.result_name(entry) for entry in case.entries] == ["forward-8: auto", "forward-8: auto backward-8"]
