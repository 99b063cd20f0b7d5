"""`flaxformer convert` turns one form into another, or says why not and writes nothing."""

import numpy as np
import pytest

from flaxformer import cli
from flaxformer.weights.t5x import load_t5x_checkpoint, save_t5x_checkpoint, split_relative_bias, stack_layers
from tests.weights import trees, writer


@pytest.fixture
def source(tmp_path):
    writer.native(tmp_path / "model" / "checkpoint_7", trees.state())
    return str(tmp_path / "model")


def convert(*arguments):
    return cli.main(["convert", "--from", "t5x", "--to", *map(str, arguments)])


@pytest.mark.parametrize("form", ["t5x", "orbax"])
def test_a_checkpoint_keeps_its_state_or_leaves_it_out(source, tmp_path, capsys, form):
    assert convert(form, source, tmp_path / "whole") == 0
    trees.assert_equal(load_t5x_checkpoint(tmp_path / "whole"), trees.state())
    assert "checkpoint_7: 2 parameters of 112 bytes from" in capsys.readouterr().out
    assert convert(form, source, tmp_path / "params", "--params-only") == 0
    got = load_t5x_checkpoint(tmp_path / "params")
    trees.assert_equal(got, {"target": trees.state()["target"], "state": {"step": np.int32(7)}})


def test_safetensors_holds_the_parameters_in_the_type_asked_for(source, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    assert convert("safetensors", source, tmp_path / "x.safetensors", "--dtype", "bfloat16", "--step", 7) == 0
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="flax") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"bfloat16"}


def test_layouts_are_changed_in_the_order_given(tmp_path):
    params = {"encoder": trees.layers(shared=trees.numbers(2, 8))}
    save_t5x_checkpoint(tmp_path / "old", {"target": params}, step=1)
    layouts = ("--layout", "split-bias", "--layout", "stack", "--scan-axis", 0)
    assert convert("t5x", tmp_path / "old", tmp_path / "new", *layouts) == 0
    expected = stack_layers(split_relative_bias(params), axis=0)
    trees.assert_equal(load_t5x_checkpoint(tmp_path / "new")["target"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t5x", "{source}", "{new}", "--layout", "stack"), "Add --params-only"),
        (("t5x", "{source}", "{new}", "--layout", "stack", "--params-only"), "expected one per layer|other parameters"),
        (("safetensors", "{source}/none", "{new}"), "none does not exist"),
        (("orbax", "{source}", "{new}", "--step", "8"), "wanted step 8"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(tmp_path, capsys, arguments, message):
    state = trees.state()
    state["target"] = {"encoder": trees.layers(shared=trees.numbers(2, 8))}
    writer.native(tmp_path / "model" / "checkpoint_7", state)
    places = {"source": tmp_path / "model", "new": tmp_path / "new"}
    assert convert(*(argument.format(**places) for argument in arguments)) == 2
    printed = capsys.readouterr().err
    assert any(part in printed for part in message.split("|")) and "Traceback" not in printed
    assert not (tmp_path / "new").exists()


def test_a_destination_that_exists_is_left_alone(source, capsys):
    assert convert("t5x", source, source) == 2
    assert "checkpoint_7 exists" in capsys.readouterr().err
    trees.assert_equal(load_t5x_checkpoint(source), trees.state())
