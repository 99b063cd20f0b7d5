"""Weights are read as they were written, lazily; what is damaged, incomplete or harmful is refused by name."""

import json
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.weights.pretrained.files import open_file, open_weights, read_json
from tests.weights.pretrained import torch_files
from tests.weights.pretrained.torch_files import numbers

ARRAYS = {
    "a": numbers(3, 4),
    "half": numbers(5, dtype="float16"),
    "brain": numbers(2, 2, dtype=jnp.bfloat16),
    "turned": numbers(2, 3).T,
    "number": numbers(dtype="int64"),
    "none": numbers(0, 4),
}


def written(tmp_path, form):
    if form == "safetensors":
        package = pytest.importorskip("safetensors.numpy")
        path = tmp_path / "model.safetensors"
        package.save_file({name: np.array(array, order="C") for name, array in ARRAYS.items()}, path)
        return path
    path = tmp_path / "pytorch_model.bin"
    getattr(torch_files, form)(path, ARRAYS)
    return path


@pytest.fixture(params=["safetensors", "zipped", "old"])
def path(request, tmp_path):
    return written(tmp_path, request.param)


def test_every_array_comes_back_as_it_was(path):
    got = open_weights(path.parent)
    assert got.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        np.testing.assert_array_equal(got[name].read(), array)
    np.testing.assert_array_equal(got["a"].read((slice(1, 3), slice(0, 2))), ARRAYS["a"][1:3, :2])
    np.testing.assert_array_equal(got["turned"].read((slice(2, 3), slice(1, 2))), ARRAYS["turned"][2:3, 1:2])


@pytest.mark.parametrize("kept", [0, 5, 60, -1, -40])
def test_a_file_that_was_cut_off_is_named(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read: .*copy or download it again"):
        for array in open_file(path).values():
            array.read()


def test_a_pickle_may_name_nothing_but_arrays(tmp_path):
    path, ran = tmp_path / "pytorch_model.bin", tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return ran.touch, ()

    text = pickle.dumps({"a": Harmful()}, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
    with pytest.raises(ValueError, match="names .*, which is no array; nothing of it was run"):
        open_file(path)
    path.write_bytes(text)
    with pytest.raises(ValueError, match="nothing of it was run"):
        open_file(path)
    assert not ran.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]])
def test_a_pickle_that_holds_no_arrays_is_refused(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="holds no mapping of names to arrays"):
        open_file(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "has the type 'F99'"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"of shape \[2\] has 4 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "was cut off: 'a' ends at"),
        ({"dtype": "F32"}, "its header is broken"),
    ],
)
def test_headers_of_safetensors_are_checked(tmp_path, entry, message):
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(ValueError, match=message):
        open_file(path)


def test_pieces_are_read_through_their_index(tmp_path):
    torch_files.zipped(tmp_path / "one.bin", {"a": ARRAYS["a"]})
    torch_files.zipped(tmp_path / "two.bin", {"b": ARRAYS["half"]})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    assert {name: array.shape for name, array in open_weights(tmp_path).items()} == {"a": (3, 4), "b": (5,)}
    for where, message in (
        ({"a": "one.bin", "b": "three.bin"}, "names three.bin, not in the folder"),
        ({"a": "one.bin", "c": "one.bin"}, "its files lack c"),
        ({"a": "../one.bin"}, "points out of the folder"),
        ({}, "it has no 'weight_map'"),
    ):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(ValueError, match=message):
            open_weights(tmp_path)


def test_folders_and_documents_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        open_weights(tmp_path / "nowhere")
    (tmp_path / "readme").touch()
    with pytest.raises(ValueError, match="holds no weights; expected one of .* It holds: readme"):
        open_weights(tmp_path)
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be read: it is no JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="it holds a list instead of an object"):
        read_json(tmp_path / "config.json")
