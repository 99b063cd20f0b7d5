"""Checkpoints written by hand in T5X's layouts load with every number, name and dtype."""

import gzip
import zlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxformer.weights.t5x import CheckpointError, StoredArray, load_t5x_checkpoint
from tests.weights import trees, writer

DRIVERS = ("file", "gfile", "gcs")
SPLITS = {
    "parameters apart": lambda name: name.startswith("target/"),
    "statistics apart too": lambda name: name.startswith("target/") or name.endswith(("/v", "/m")),
    "everything apart": lambda name: True,
    "everything inline": lambda name: False,
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("header", [True, False])
def test_native_form_loads_wherever_its_leaves_are(tmp_path, split, header):
    state = trees.state()
    writer.native(tmp_path / "checkpoint_7", state, apart=SPLITS[split], header=header)
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)


@pytest.mark.parametrize("driver", DRIVERS)
def test_where_an_array_was_written_does_not_matter(tmp_path, driver):
    writer.native(tmp_path / "checkpoint_7", trees.state(), driver=driver)
    trees.assert_equal(load_t5x_checkpoint(tmp_path), trees.state())


def test_a_path_in_another_place_or_of_an_old_spec_means_the_folder_beside_the_document(tmp_path):
    array = trees.numbers(3)
    writer.zarr(tmp_path / "checkpoint_1" / "target.w", array)
    elsewhere = writer.spec("elsewhere/checkpoint_1/target.w", array, driver="gfile")
    old = writer.spec("", array) | {"path": "target.w", "kvstore": {"driver": "gfile"}}
    content = {"version": 3, "optimizer": {"target": {"a": elsewhere, "b": old}, "state": {}}}
    writer.document(tmp_path / "checkpoint_1" / "checkpoint", content)
    trees.assert_equal(load_t5x_checkpoint(tmp_path)["target"], {"a": array, "b": array})


@pytest.mark.parametrize("chunks", [(6, 4), (2, 4), (3, 1), (4, 3), (1, 1)])
@pytest.mark.parametrize("codec", ["gzip", "zlib", None])
def test_chunks_of_any_shape_and_codec_give_the_whole_array_and_any_part(tmp_path, chunks, codec):
    array = trees.numbers(6, 4, dtype="float64")
    compress = {"gzip": gzip.compress, "zlib": zlib.compress, None: bytes}[codec]
    name = "target.w"
    folder = tmp_path / "checkpoint_1"
    writer.zarr(folder / name, array, chunks, compress, compressor=codec and {"id": codec, "level": 1})
    content = {"version": 3, "optimizer": {"target": {"w": writer.spec(name, array, chunks)}, "state": {}}}
    writer.document(folder / "checkpoint", content)
    lazy = load_t5x_checkpoint(folder, lazy_parameters=True)["target"]["w"]
    np.testing.assert_array_equal(lazy.get(), array)
    for part in [(slice(1, 3), slice(0, 2)), (slice(5, 6), slice(3, 4)), (slice(2, 2), slice(None))]:
        np.testing.assert_array_equal(lazy.read(part), array[part])


def test_scalars_none_and_large_arrays_in_pieces_are_read_from_the_document(tmp_path):
    big = trees.numbers(5, 3)
    target = {"big": writer.packed_in_pieces(big, 4), "scalar": writer.packed_scalar(np.float32(2.5))}
    optimizer = {"target": target, "state": {"step": writer.packed(np.int32(3)), "param_states": {"big": None}}}
    writer.document(tmp_path / "checkpoint_3" / "checkpoint", {"version": 3, "optimizer": optimizer})
    got = load_t5x_checkpoint(tmp_path)
    trees.assert_equal(got["target"], {"big": big, "scalar": np.float32(2.5)})
    assert got["state"]["step"] == 3 and got["state"]["param_states"] == {"big": None}


def test_bfloat16_is_read_with_and_without_a_header_and_cast_on_request(tmp_path):
    array = trees.numbers(4, 3).astype(ml_dtypes.bfloat16)
    for header in (True, False):
        writer.native(tmp_path / str(header) / "checkpoint_0", {"target": {"w": array}, "state": {}}, header=header)
        trees.assert_equal(load_t5x_checkpoint(tmp_path / str(header))["target"], {"w": array})
        wide = load_t5x_checkpoint(tmp_path / str(header), restore_dtype="float32")["target"]
        trees.assert_equal(wide, {"w": array.astype(np.float32)})


def test_only_floating_parameters_are_cast(tmp_path):
    state = {"target": {"w": trees.numbers(3), "n": np.arange(3, dtype=np.int32)}, "state": {"v": trees.numbers(2)}}
    writer.native(tmp_path / "checkpoint_0", state)
    got = load_t5x_checkpoint(tmp_path, restore_dtype=jnp.bfloat16)
    assert got["target"]["w"].dtype == jnp.bfloat16
    trees.assert_equal({"n": got["target"]["n"], **got["state"]}, {"n": state["target"]["n"], **state["state"]})


def test_version_2_holds_bfloat16_as_its_bits(tmp_path):
    array = trees.numbers(4, 3).astype(ml_dtypes.bfloat16)
    state = {"target": {"w": array.view(np.uint16)}, "state": {"step": np.int32(1)}}
    writer.native(tmp_path / "checkpoint_1", state, version=2)
    trees.assert_equal(load_t5x_checkpoint(tmp_path)["target"], {"w": array})


def test_a_single_file_without_a_version_is_the_state_itself(tmp_path):
    array = trees.numbers(2, 3)
    content = {"target": {"w": writer.packed(array)}, "state": {"step": writer.packed(np.int32(5))}}
    writer.document(tmp_path / "checkpoint_5", content)
    for path in (tmp_path, tmp_path / "checkpoint_5"):
        trees.assert_equal(load_t5x_checkpoint(path), {"target": {"w": array}, "state": {"step": np.int32(5)}})


def test_other_collections_and_an_empty_target_are_kept(tmp_path):
    state = {"target": {}, "state": {"step": np.int32(1)}, "flax_mutables": {"stats": {"mean": trees.numbers(2)}}}
    writer.native(tmp_path / "checkpoint_1", state)
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)


def test_early_orbax_form_loads(tmp_path):
    state = trees.state()
    writer.early_orbax(tmp_path / "7", state)
    trees.assert_equal(load_t5x_checkpoint(tmp_path), state)


def test_early_orbax_form_loads_with_zstd_by_tensorstore(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    array = trees.numbers(6, 4)
    folder = writer.early_orbax(tmp_path / "1", {"target": {}, "state": {"step": np.int32(1)}})
    metadata = {"shape": [6, 4], "chunks": [3, 4], "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}}
    kvstore = {"driver": "file", "path": f"{folder / '_optimizer.target.w'}/"}
    store = tensorstore.open({"driver": "zarr", "kvstore": kvstore, "metadata": metadata}, create=True, open=False)
    store.result().write(array).result()
    content = {"_optimizer": {"target": {"w": "PLACEHOLDER://_optimizer.target.w"}, "state": {}}}
    writer.document(folder / "checkpoint", content)
    lazy = load_t5x_checkpoint(tmp_path, lazy_parameters=True)["target"]["w"]
    np.testing.assert_array_equal(lazy.get(), array)
    np.testing.assert_array_equal(lazy.read((slice(1, 5), slice(2, 3))), array[1:5, 2:3])
    (folder / "_optimizer.target.w" / "1.0").unlink()
    with pytest.raises(CheckpointError, match=r"array target/w in .*its chunk 1.0 is missing|_optimizer/target/w"):
        load_t5x_checkpoint(tmp_path)


def test_lazy_arrays_tell_shape_and_dtype_and_read_on_request(tmp_path):
    state = trees.state()
    writer.native(tmp_path / "checkpoint_7", state)
    lazy = load_t5x_checkpoint(tmp_path, lazy_parameters=True)
    kernel = lazy["target"]["encoder"]["layers_0"]["query"]["kernel"]
    assert isinstance(kernel, StoredArray) and isinstance(lazy["state"]["step"], StoredArray)
    assert (kernel.shape, kernel.dtype, kernel.ndim, kernel.size, kernel.nbytes) == ((6, 4), np.float32, 2, 24, 96)
    folder = tmp_path / "checkpoint_7" / "target.encoder.layers_0.query.kernel"
    (folder / "0.0").write_bytes(b"")  # nothing was read so far
    with pytest.raises(CheckpointError, match="layers_0/query/kernel"):
        kernel.get()


def test_versions_of_the_save_format_are_taken_out_or_kept(tmp_path):
    version = {"__save_format_metadata__": {"__version__": 0}}
    plain = {"target": {"encoder": {"scale": trees.numbers(3)}}, "state": {"step": np.int32(1)}}
    states = {"param_states": {"encoder": {"scale": {"v": trees.numbers(3)}, **version}, **version}}
    state = {"target": {"encoder": {**plain["target"]["encoder"], **version}, **version}}
    state["state"] = {**plain["state"], **states}
    writer.native(tmp_path / "checkpoint_1", state)
    got = load_t5x_checkpoint(tmp_path)
    trees.assert_equal(got["target"], plain["target"])
    assert list(got["state"]["param_states"]) == ["encoder"] and "scale" in got["state"]["param_states"]["encoder"]
    assert load_t5x_checkpoint(tmp_path, remap=False)["target"]["encoder"]["__save_format_metadata__"] == {
        "__version__": 0
    }


def test_a_layout_of_an_unknown_version_is_refused_without_its_remapping(tmp_path):
    state = {"target": {"encoder": {"w": trees.numbers(2), "__save_format_metadata__": {"__version__": 3}}}}
    writer.native(tmp_path / "checkpoint_1", state)
    with pytest.raises(ValueError, match=r"target/encoder has version 3 .*expected 0.*make_from_save_format_fn"):
        load_t5x_checkpoint(tmp_path)

    def remapped(state, target_state, *, is_resuming=False):
        assert target_state is None and not is_resuming
        return {**state, "target": {"renamed": state["target"]["encoder"]["w"]}}

    got = load_t5x_checkpoint(tmp_path, state_transformation_fns=[remapped])
    trees.assert_equal(got["target"], {"renamed": state["target"]["encoder"]["w"]})
