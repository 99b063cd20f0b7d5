"""Structure and counts only: nothing here looks at how long anything took."""

import sys
from pathlib import Path

import pytest

from benchmarks import families, family_sizes, measure
from benchmarks.peers import client
from flaxformer.weights.pretrained.loading import model_of

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 32
}  # fmt: skip
PEER = """
import pathlib, sys
sys.path.insert(0, {folder!r})
from serve import serve, settings

def make_tasks():
    assert (pathlib.Path(settings()["folder"]) / "tokens.npy").exists()
    return {{"greedy": ((lambda: None), {{"tokens": [[40] * settings()["new"]] * 2}})}}, 1

serve("hf_torch", ["pip"], make_tasks)
"""


@pytest.mark.parametrize("family", family_sizes.FAMILIES)
def test_every_configuration_is_one_that_is_known(family):
    config = family_sizes.config_of(family)
    assert config["model_type"] == family
    assert model_of(config) is not None


def test_a_family_is_measured_in_turns_with_its_peer(tmp_path, monkeypatch, capsys):
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(folder=str(Path(client.__file__).parent)))
    monkeypatch.setattr(families, "SCRIPT", script)
    monkeypatch.setattr(families, "config_of", lambda family: family_sizes.config_of(family, **TINY))
    sizes = ["--batch", "2", "--source", "4", "--new", "3", "--rounds", "2", "--warmup", "0"]
    peer = ["--peer-python", f"hf_torch={sys.executable}"]
    assert families.main(["--only", "llama", *sizes, *peer, "--output", str(tmp_path)]) == 0
    (row,) = measure.read_record(tmp_path / "results.json")["results"]
    assert (row["family"], row["new"], row["same_tokens"]) == ("llama", 3, 0.0)
    assert set(row["seconds"]) == {"flaxformer", "hf_torch"}
    printed = capsys.readouterr().out
    assert families.main(["--show", str(tmp_path / "results.json")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == printed.splitlines()[0]


def test_a_family_that_is_not_known_is_refused(capsys):
    assert families.main(["--only", "llamas"]) == 2
    assert "--only has the family 'llamas'; expected some of gpt2, llama" in capsys.readouterr().err
