"""What is written in T5X's form is what old tools expect, whole or not at all."""

import json
import re

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from flaxformer.weights import zarr
from flaxformer.weights.t5x import CheckpointError, load_t5x_checkpoint, save_t5x_checkpoint
from tests.weights import trees, writer

KERNEL = "target.encoder.layers_0.query.kernel"


def document(folder):
    def decode(code, data):
        shape, dtype, buffer = msgpack.unpackb(data)
        return code, shape, dtype, buffer

    return msgpack.unpackb((folder / "checkpoint").read_bytes(), ext_hook=decode)


def test_a_state_survives_being_written_and_read(tmp_path):
    state = trees.state() | {"flax_mutables": {"stats": {"mean": trees.numbers(2)}}}
    assert save_t5x_checkpoint(tmp_path, state) == tmp_path / "checkpoint_7"
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_7"]


def test_the_document_and_the_folders_are_those_of_t5x(tmp_path):
    folder = save_t5x_checkpoint(tmp_path, trees.state())
    names = {path.name for path in folder.iterdir()}
    scale = "encoder.encoder_norm.scale"
    assert names == {"checkpoint", KERNEL, f"target.{scale}", f"state.param_states.{scale}.v"}
    content = document(folder)
    assert set(content) == {"version", "optimizer"} and content["version"] == 3
    assert content["optimizer"]["target"]["encoder"]["layers_0"]["query"]["kernel"] == {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "file", "path": f"{KERNEL}/"},
        "metadata": {"chunks": [6, 4], "compressor": {"id": "gzip", "level": 1}, "shape": [6, 4]},
    }
    assert content["optimizer"]["state"]["step"][:3] == (1, [], "int32")
    row = content["optimizer"]["state"]["param_states"]["encoder"]["layers_0"]["query"]["kernel"]["v_row"]
    assert row[:3] == (1, [4], "float32")
    reference = tmp_path / "reference"
    writer.zarr(reference, trees.state()["target"]["encoder"]["layers_0"]["query"]["kernel"])
    assert json.loads((folder / KERNEL / ".zarray").read_text()) == json.loads((reference / ".zarray").read_text())
    assert {path.name for path in (folder / KERNEL).iterdir()} == {".zarray", "0.0"}


def test_tensorstore_opens_what_was_written_with_the_spec_in_the_document(tmp_path, monkeypatch):
    tensorstore = pytest.importorskip("tensorstore")
    monkeypatch.setattr(zarr.chunk_shape, "__defaults__", (64,))
    array = trees.numbers(12, 10)
    params = {"w": array, "h": jnp.asarray(array, jnp.bfloat16), "s": np.float32(2)}
    folder = save_t5x_checkpoint(tmp_path, {"target": params}, step=1)
    assert len(list((folder / "target.w").iterdir())) > 2
    for name, expected in params.items():
        spec = document(folder)["optimizer"]["target"][name]
        spec["kvstore"]["path"] = f"{folder}/{spec['kvstore']['path']}"
        got = tensorstore.open(spec, open=True).result().read().result()
        np.testing.assert_array_equal(got, np.asarray(expected))
        assert got.dtype == np.asarray(expected).dtype
    trees.assert_equal(load_t5x_checkpoint(tmp_path)["target"], jax.tree.map(np.asarray, params))


@pytest.mark.parametrize(
    ("shape", "limit", "chunks"),
    [
        ((), 1, ()),
        ((1, 1), 1, (1, 1)),
        ((6, 4), 96, (6, 4)),
        ((6, 4), 95, (3, 4)),
        ((6, 4), 30, (3, 2)),
        ((7, 2), 40, (1, 2)),
        ((4, 4, 4), 64, (2, 2, 4)),
    ],
)
def test_chunks_divide_the_shape_by_lowering_the_largest_axis(shape, limit, chunks):
    assert zarr.chunk_shape(shape, 4, limit) == chunks


def test_only_parameters_are_saved_in_another_type(tmp_path):
    save_t5x_checkpoint(tmp_path, trees.state(), dtype="bfloat16")
    got = load_t5x_checkpoint(tmp_path)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(got["target"])} == {"bfloat16"}
    trees.assert_equal(got["state"], trees.state()["state"])


def test_parameters_alone_are_enough(tmp_path):
    params = trees.state()["target"]
    save_t5x_checkpoint(tmp_path, {"target": jax.tree.map(jnp.asarray, params)}, step=3)
    trees.assert_equal(load_t5x_checkpoint(tmp_path, step=3), {"target": params, "state": {"step": np.int32(3)}})


def test_none_and_empty_entries_survive(tmp_path):
    state = {"target": {}, "state": {"step": np.int32(0), "param_states": {"frozen": None, "empty": {}}}}
    save_t5x_checkpoint(tmp_path, state)
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"params": {}}, {}, r"the state has params; expected parameters under 'target'"),
        ({"target": {}}, {"dtype": "float16"}, "dtype is 'float16'; expected 'float32', 'bfloat16' or None"),
        ({"target": {"w": np.zeros((0, 3), np.float32)}}, {}, None),
    ],
)
def test_what_t5x_could_not_read_is_refused(tmp_path, state, options, message):
    if message is None:  # an array without numbers stands in the document
        save_t5x_checkpoint(tmp_path, state)
        trees.assert_equal(load_t5x_checkpoint(tmp_path)["target"], state["target"])
        return
    with pytest.raises(ValueError, match=message):
        save_t5x_checkpoint(tmp_path, state, **options)
    assert not list(tmp_path.iterdir())


def test_an_array_without_numbers_has_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape("w has shape [0]; expected at least one number")):
        zarr.write_array(tmp_path / "w", np.zeros(0))


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    save_t5x_checkpoint(tmp_path, trees.state())
    before = (tmp_path / "checkpoint_7" / "checkpoint").read_bytes()
    with pytest.raises(CheckpointError, match="checkpoint_7 exists; expected a new place"):
        save_t5x_checkpoint(tmp_path, {"target": {}}, step=7)
    assert (tmp_path / "checkpoint_7" / "checkpoint").read_bytes() == before


def test_nothing_is_left_when_the_source_cannot_be_read(tmp_path):
    source = writer.native(tmp_path / "source" / "checkpoint_7", trees.state())
    lazy = load_t5x_checkpoint(source, lazy_parameters=True)
    (source / KERNEL / "0.0").unlink()
    with pytest.raises(CheckpointError, match="chunk 0.0: it is missing"):
        save_t5x_checkpoint(tmp_path / "copy", lazy)
    assert not list((tmp_path / "copy").iterdir())
