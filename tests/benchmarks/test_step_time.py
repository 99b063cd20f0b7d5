"""Structure only: nothing here looks at how long anything took."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

from benchmarks import measure, step_time
from benchmarks.peers import client
from benchmarks.programs import Subject, Workload
from flaxformer import configs

TINY = ["--model", "t5_1_1/tiny", "--gin.NUM_ENCODER_LAYERS=1", "--gin.NUM_DECODER_LAYERS=1"]
SMALL_WORK = ["--batch", "2", "--source", "4", "--target", "3", "--rounds", "2", "--warmup", "0"]
RESULT = {
    "name", "system", "program", "seconds", "tokens", "tokens_per_second", "flops", "flops_per_second", "matmul_share",
    "trace_seconds", "compile_seconds", "first_call_seconds", "bytes", "compiler_estimate",
}  # fmt: skip
SETTINGS = {
    "model", "bindings", "files", "batch", "source", "target", "rounds", "warmup", "donate", "objective", "optimizer",
    "parameters", "flops_counted_by",
}  # fmt: skip
PEER = """
import sys
sys.path.insert(0, {folder!r})
from serve import serve, settings

def make_tasks():
    return {{name: ((lambda: None), {{}}) for name in settings()["programs"]}}, {parameters}

serve("hf_torch", ["pip"], make_tasks)
"""


@pytest.fixture(autouse=True, scope="module")
def small_calibration():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MATMUL_SIZE", 16)
        patch.setattr(measure, "READ_FLOATS", 64)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory, small_calibration):
    """One run with a stand-in for a peer: its record, its folder and what was printed."""
    folder = tmp_path_factory.mktemp("step_time")
    script = folder / "peer.py"
    tiny = configs.load("t5_1_1/tiny", ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1"])
    parameters = Subject(tiny, Workload(1, 1, 1)).parameters
    script.write_text(PEER.format(folder=str(Path(client.__file__).parent), parameters=parameters))
    arguments = [*TINY, *SMALL_WORK, "--output", str(folder), "--peers", "--peer-python", f"hf_torch={sys.executable}"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(client, "SCRIPTS", {"hf_torch": script})
        assert step_time.main(arguments) == 0
    return measure.read_record(folder / "results.json"), folder, printed.getvalue()


def test_a_record_has_all_documented_keys(ran):
    record, _, _ = ran
    assert set(record) == {"benchmark", "format", "environment", "settings", "calibration", "results", "ratios"}
    assert set(record["settings"]) == SETTINGS
    assert set(record["environment"]) == {"time", "machine", "versions", "flags", "git", "peers"}
    for result in record["results"]:
        assert set(result) == RESULT
        assert len(result["seconds"]["values"]) == 2
    for result in record["results"][::2]:
        assert set(result["bytes"]) == {"arguments", "outputs", "aliased", "temporaries", "peak"}


def test_programs_and_peers_are_all_there(ran):
    record, _, printed = ran
    names = [result["name"] for result in record["results"]]
    assert names == ["flaxformer/forward", "hf_torch/forward", "flaxformer/train", "hf_torch/train"]
    assert [(ratio["peer"], ratio["program"]) for ratio in record["ratios"]] == [
        ("hf_torch", "forward"),
        ("hf_torch", "train"),
    ]
    assert all(word in printed for word in ("flaxformer", "hf_torch", "results.json", "seconds.png", "GFLOP/s"))


def test_a_training_step_counts_three_forward_passes_and_overwrites_its_state(ran):
    forward, _, train, _ = ran[0]["results"]
    assert train["flops"] == 3 * forward["flops"] > 0
    assert train["tokens"] == forward["tokens"] == 2 * (4 + 3)
    assert train["bytes"]["aliased"] > 3 * 4 * ran[0]["settings"]["parameters"]


def test_the_plot_is_written(ran):
    assert (ran[1] / "seconds.png").read_bytes().startswith(b"\x89PNG")


def test_the_step_with_metrics_keeps_its_state_if_asked(tmp_path):
    arguments = [*TINY, *SMALL_WORK, "--programs", "train_with_metrics", "--no-donate", "--output", str(tmp_path)]
    assert step_time.main(arguments) == 0
    (result,) = measure.read_record(tmp_path / "results.json")["results"]
    assert result["bytes"]["aliased"] == 0


def test_the_dtype_is_bound_before_the_command_line():
    def dtype(*arguments):
        parser = step_time.make_parser()
        parsed = parser.parse_args(step_time.flags.rewrite([*TINY, *arguments]))
        return step_time.read_configuration(parsed).build("ACTIVATION_DTYPE")

    assert dtype() == "float32"
    assert dtype("--dtype", "bfloat16") == "bfloat16"
    assert dtype("--dtype", "bfloat16", "--gin.ACTIVATION_DTYPE='float16'") == "float16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--programs", "forward,backward"], "programs has 'backward'; expected some of forward, train"),
        (["--batch", "0"], "batch is 0, source 128 and target 128; expected at least 1 of each"),
        (["--model", "t5_1_1/mall"], "t5_1_1/mall"),
        (["--peers"], "peers were asked for but no interpreter is known; expected --peer-python NAME=PATH"),
        (["--peers", "--peer-python", "other=python3"], "the peer interpreter is 'other=python3'; expected NAME=PATH"),
        (["--peers", "--peer-python", "hf_flax=/no/python"], "hf_flax is '/no/python'; expected a program"),
        (
            ["--peers", "--peer-python", "hf_flax=python3", "--dtype", "bfloat16"],
            "peers were asked for beside t5_1_1/tiny in bfloat16; expected t5_1_1/SIZE in float32",
        ),
        (["--root", "DROPOUT_FACTORY"], "expected a Linen module"),
    ],
)
def test_bad_input_is_refused_without_a_traceback(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("BENCHMARK_PEER_HF_TORCH", raising=False)
    monkeypatch.delenv("BENCHMARK_PEER_HF_FLAX", raising=False)
    assert step_time.main([*TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_peer_of_another_size_is_refused(tmp_path):
    class Peer:
        name, parameters = "hf_torch", 5

    class Subject:
        parameters = 6

    with pytest.raises(ValueError, match="hf_torch has 5 parameters and the model 6; expected equal models"):
        step_time._check_parameters([Peer()], Subject())
