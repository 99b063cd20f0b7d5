"""Structure and counts only: nothing here looks at how long anything took."""

import contextlib
import io
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import decode, decode_work, measure
from benchmarks.decode_work import Case, Generator, Work
from benchmarks.peers import client
from flaxformer import configs

TINY = ["--model", "t5_1_1/tiny", "--gin.NUM_ENCODER_LAYERS=1", "--gin.NUM_DECODER_LAYERS=1"]
PEER = """
import sys
sys.path.insert(0, {folder!r})
from serve import serve, settings

def make_tasks():
    names = [case["name"] for case in settings()["cases"]]
    return {{f"int8/{{name}}": ((lambda: None), {{}}) for name in names}}, {parameters}

serve("ctranslate2", ["pip"], make_tasks)
"""


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MATMUL_SIZE", 16)
        patch.setattr(measure, "READ_FLOATS", 64)
        groups = {"rows": (Case(1, 1, 4, 3), Case(2, 1, 4, 3)), "batch": (Case(1, 2, 4, 3),)}
        patch.setattr(decode, "GROUPS", groups)
        yield


@pytest.fixture(scope="module")
def generator(small):
    return Generator(
        configs.load(
            "t5_1_1/tiny", ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1", "ACTIVATION_DTYPE = 'float32'"]
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, generator):
    """Two runs into one folder, one with a stand-in for a peer."""
    folder = tmp_path_factory.mktemp("decode")
    script = folder / "peer.py"
    script.write_text(PEER.format(folder=str(Path(client.__file__).parent), parameters=generator.parameters))
    common = [*TINY, "--rounds", "2", "--warmup", "0", "--output", str(folder)]
    peers = ["--peers", "--peer-python", f"ctranslate2={sys.executable}"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(decode, "SCRIPTS", {"ctranslate2": script})
        assert decode.main([*common, "--only", "rows", *peers]) == 0
        assert decode.main([*common, "--only", "batch"]) == 0
    return folder


def test_runs_into_one_folder_add_up(folder, capsys):
    record = measure.read_record(folder / "results.json")
    names = {result["name"] for result in record["results"]}
    cases = ["greedy-b1-s4-n3", "beam2-b1-s4-n3"]
    assert names == {f"{system}/{c}" for system in ("flaxformer", "ctranslate2 int8") for c in cases} | {
        "flaxformer/greedy-b2-s4-n3"
    }
    for result in record["results"]:
        assert result["times_limit"] == pytest.approx(result["seconds"]["median"] / result["limit_seconds"])
        assert result["tokens_per_second"] == pytest.approx(3 * result["batch"] / result["seconds"]["median"])
    assert (folder / "tokens_by_batch.png").stat().st_size > 1000
    assert decode.main(["--show", str(folder / "results.json")]) == 0
    assert "greedy-b2-s4-n3" in capsys.readouterr().out


def test_records_of_different_models_do_not_mix(folder):
    record = measure.read_record(folder / "results.json")
    other = {**record, "settings": {**record["settings"], "model": ["another"]}}
    with pytest.raises(ValueError, match="measured with another settings"):
        decode.merge(other, record)


def test_the_limit_counts_every_weight_once_per_step(generator):
    """Two steps behind the start token attend to 2 and 3 tokens, and to the 4 of the source."""
    params = generator.params
    read = sum(x.size for x in jax.tree.leaves(params["decoder"]))
    one, two = generator.work(Case(1, 1, 4, 3)), generator.work(Case(1, 2, 4, 3))
    heads = params["decoder"]["layers_0"]["self_attention"]["key"]["kernel"].shape[1]
    cached = 2 * heads * 4  # bytes of a key and a value, float32
    assert one.bytes == 2 * (4 * read + 2.5 * cached + 4 * cached)
    assert two.bytes == 2 * (4 * read + 2 * 2.5 * cached + 2 * 4 * cached)
    assert two.flops == 2 * one.flops


def test_beams_count_as_rows_without_copies_of_the_encoder(generator):
    greedy, beams = generator.work(Case(1, 1, 4, 3)), generator.work(Case(3, 1, 4, 3))
    assert greedy.flops < beams.flops < 3 * greedy.flops
    assert greedy.bytes < beams.bytes < 2 * greedy.bytes


def test_the_limit_is_whichever_takes_longer():
    assert Work(flops=100, bytes=10).seconds(10, 10) == 10
    assert Work(flops=100, bytes=1000).seconds(10, 10) == 100


def test_bad_requests_end_with_a_sentence(folder, capsys, generator, monkeypatch):
    assert decode.main([*TINY, "--only", "rows,lines"]) == 2
    assert "--only has 'lines'; expected some of rows, batch" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a peer has 1 parameters and the model"):
        decode._check_parameters([type("Peer", (), {"parameters": 1, "name": "a peer"})()], generator)
    monkeypatch.setattr(decode_work, "EOS", int(_first_token(generator)))
    with pytest.raises(ValueError, match="ended after 1 tokens; expected 3"):
        generator.prepare(Case(1, 1, 4, 3))


def _first_token(generator):
    task, *_ = generator.prepare(Case(1, 1, 4, 3))
    return task().tokens[0, 0, 0]
