"""Other forms hold the same numbers, and other tools read them."""

import jax
import ml_dtypes
import numpy as np
import pytest

from flaxformer.training import checkpoints
from flaxformer.weights.exporting import save_orbax_checkpoint, save_safetensors
from flaxformer.weights.orbax_tree import read_orbax
from flaxformer.weights.t5x import CheckpointError, load_t5x_checkpoint
from tests.weights import trees, writer


def test_safetensors_reads_the_file_with_names_joined_by_dots(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    params = trees.state()["target"] | {"n": np.arange(3), "s": np.float32(2), "b": np.array([True, False])}
    save_safetensors(tmp_path / "model.safetensors", params)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "flax"}
        got = {name: file.get_tensor(name) for name in file.keys()}
    expected = {
        "encoder.layers_0.query.kernel": params["encoder"]["layers_0"]["query"]["kernel"],
        "encoder.encoder_norm.scale": params["encoder"]["encoder_norm"]["scale"],
        **{name: np.asarray(params[name]) for name in "nsb"},
    }
    trees.assert_equal(got, expected)


def test_safetensors_holds_bfloat16(tmp_path):
    safetensors = pytest.importorskip("safetensors.flax")
    array = trees.numbers(3, 2).astype(ml_dtypes.bfloat16)
    save_safetensors(tmp_path / "x", {"w": array})
    trees.assert_equal(jax.tree.map(np.asarray, safetensors.load_file(tmp_path / "x")), {"w": array})


def test_safetensors_refuses_types_it_lacks_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="w has dtype complex64; expected one of float64, float32"):
        save_safetensors(tmp_path / "x", {"w": np.zeros(2, np.complex64)})
    (tmp_path / "old").touch()
    with pytest.raises(CheckpointError, match="old exists"):
        save_safetensors(tmp_path / "old", {})
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_nothing_is_left_of_a_file_whose_source_breaks(tmp_path):
    source = writer.native(tmp_path / "checkpoint_7", trees.state())
    lazy = load_t5x_checkpoint(source, lazy_parameters=True)["target"]
    (source / "target.encoder.encoder_norm.scale" / "0").unlink()
    with pytest.raises(CheckpointError, match="target/encoder/encoder_norm/scale"):
        save_safetensors(tmp_path / "new" / "x", lazy)
    assert not list((tmp_path / "new").iterdir())


def test_the_present_orbax_form_is_that_of_our_own_checkpoints(tmp_path):
    state = trees.state()
    state["state"]["param_states"]["frozen"] = None
    path = save_orbax_checkpoint(tmp_path, state)
    assert path == tmp_path / "checkpoint_7" and checkpoints.steps(tmp_path) == [7]
    trees.assert_equal(checkpoints.restore_params(tmp_path), state["target"])
    del state["state"]["param_states"]["frozen"]
    for place in (tmp_path, path / "state"):
        trees.assert_equal(load_t5x_checkpoint(place), state)


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax")
    save_orbax_checkpoint(folder, {"target": {"w": trees.numbers(6, 4)}})
    return folder


def test_the_present_orbax_form_is_read_part_by_part(orbax):
    lazy = load_t5x_checkpoint(orbax, lazy_parameters=True)["target"]["w"]
    assert (lazy.shape, lazy.dtype) == ((6, 4), np.float32)
    np.testing.assert_array_equal(lazy.read((slice(1, 3), slice(0, 4))), trees.numbers(6, 4)[1:3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda item: (item / "_METADATA").write_text("{"), "changed state/_METADATA"),
        (lambda item: next((item / "d").iterdir()).write_bytes(b""), "changed state/d/"),
    ],
)
def test_a_damaged_checkpoint_of_ours_is_told_by_its_checksums(tmp_path, damage, message):
    save_orbax_checkpoint(tmp_path, {"target": {"w": trees.numbers(6, 4)}})
    damage(tmp_path / "checkpoint_0" / "state")
    with pytest.raises(CheckpointError, match=rf"checkpoint_0 cannot be read: .*{message}"):
        load_t5x_checkpoint(tmp_path)
    (tmp_path / "checkpoint_0" / "files.json").unlink()
    with pytest.raises(CheckpointError, match=r"(_METADATA|(target/w|state/step) in .*) cannot be read"):
        load_t5x_checkpoint(tmp_path)


def test_an_orbax_checkpoint_without_parameters_is_foreign(tmp_path):
    save_orbax_checkpoint(tmp_path, {"params": {"w": trees.numbers(2)}})
    with pytest.raises(CheckpointError, match=r"holds params, state; expected parameters under 'target'"):
        load_t5x_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "options", [{"use_ocdbt": False}, {"use_zarr3": True}, {"use_ocdbt": False, "use_zarr3": True}]
)
def test_every_storage_of_orbax_is_read(tmp_path, options):
    orbax = pytest.importorskip("orbax.checkpoint")
    state = {"target": {"w": trees.numbers(6, 4), "b": trees.numbers(3)}, "state": {"step": np.int32(2)}}
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_2" / "state", args=orbax.args.PyTreeSave(state))
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)


def test_a_folder_that_is_no_orbax_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint .* cannot be read: it has no _METADATA, nor state/_METADATA"):
        read_orbax(tmp_path)
