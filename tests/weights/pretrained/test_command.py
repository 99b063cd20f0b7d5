"""`flaxformer convert` reads Hugging Face folders and writes them."""

import json

import jax
import numpy as np

from flaxformer import cli
from flaxformer.weights.pretrained import load_pretrained
from flaxformer.weights.pretrained.files import open_weights
from flaxformer.weights.t5x import load_t5x_checkpoint
from tests.parity.recorded import FIXTURES


def test_a_folder_goes_to_t5x_and_back_bit_for_bit(tmp_path, capsys):
    source = FIXTURES / "t5_1_1"
    assert cli.main(["convert", "--from", "hf", "--to", "t5x", str(source), str(tmp_path / "t5x")]) == 0
    assert "checkpoint_0: 52 parameters of" in capsys.readouterr().out
    _, variables = load_pretrained(source)
    jax.tree.map(np.testing.assert_array_equal, load_t5x_checkpoint(tmp_path / "t5x")["target"], variables["params"])
    back = ["convert", "--from", "t5x", "--to", "hf", str(tmp_path / "t5x"), str(tmp_path / "hf")]
    assert cli.main(back) == 2
    assert "--to hf needs --config FILE" in capsys.readouterr().err
    assert cli.main([*back, "--config", str(source / "config.json")]) == 0
    before, after = open_weights(source), open_weights(tmp_path / "hf")
    assert before.keys() == after.keys()
    assert all(np.array_equal(array.read(), after[name].read()) for name, array in before.items())


def test_a_folder_in_another_type(tmp_path):
    source = str(FIXTURES / "gpt2")
    arguments = ["convert", "--from", "hf", "--to", "hf", "--dtype", "bfloat16", source, str(tmp_path / "small")]
    assert cli.main(arguments) == 0
    assert {array.dtype.name for array in open_weights(tmp_path / "small").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
