"""Corrupt, truncated and foreign files give an error that names the file and the array."""

import json

import msgpack
import numpy as np
import pytest

from flaxformer.weights.t5x import CheckpointError, load_t5x_checkpoint
from tests.weights import trees, writer

ARRAY = "target.encoder.layers_0.query.kernel"
NAME = "target/encoder/layers_0/query/kernel"


@pytest.fixture
def checkpoint(tmp_path):
    return writer.native(tmp_path / "checkpoint_7", trees.state())


def truncate(path, keep=-9):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "0.0").unlink(), "chunk 0.0: it is missing"),
        (lambda folder: truncate(folder / "0.0"), "chunk 0.0: its compressed stream is truncated"),
        (lambda folder: truncate(folder / "0.0", 0), "chunk 0.0: it holds 0 bytes"),
        (lambda folder: flip(folder / "0.0"), "chunk 0.0: "),
        (lambda folder: (folder / "0.0").write_bytes(b"something else"), "chunk 0.0: "),
        (lambda folder: truncate(folder / ".zarray"), "Unterminated string"),
        (lambda folder: (folder / ".zarray").write_text("[]"), "not one of a zarr array"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "its folder is missing"),
    ],
)
def test_a_damaged_array_is_named_with_its_file(checkpoint, damage, reason):
    damage(checkpoint / ARRAY)
    with pytest.raises(CheckpointError, match=rf"(?s){NAME} in .*{ARRAY}.*({reason})"):
        load_t5x_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": [6, 5], "chunks": [6, 5]}, r"says shape \[6, 5\], the checkpoint's index \[6, 4\]"),
        ({"chunks": [6, 0]}, r"chunks \[6, 0\] for the shape \[6, 4\]"),
        ({"chunks": [3, 4]}, "chunk 0.0: it holds 96 bytes where"),
        ({"dtype": "no type"}, "not one of a zarr array"),
    ],
)
def test_a_header_that_disagrees_is_refused(checkpoint, changes, reason):
    header = checkpoint / ARRAY / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | changes))
    with pytest.raises(CheckpointError, match=rf"{NAME}.*{reason}"):
        load_t5x_checkpoint(checkpoint)


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_truncated_index_is_named(checkpoint, keep):
    truncate(checkpoint / "checkpoint", keep)
    with pytest.raises(CheckpointError, match=r"index .*checkpoint_7/checkpoint cannot be read"):
        load_t5x_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "it holds a list instead of a checkpoint"),
        ({"version": 3}, "no mapping 'target'; it has NoneType"),
        ({"version": 3, "optimizer": {"state": {}}}, "no mapping 'target'; it has state"),
        ({"weights": {}}, "no mapping 'target'; it has weights"),
        ({"version": 1, "optimizer": {"target": {}}}, "says version 1 .*expected 2 or 3"),
        ({"version": "new", "optimizer": {"target": {}}}, "says version 'new'"),
    ],
)
def test_a_foreign_document_is_named(tmp_path, content, reason):
    writer.document(tmp_path / "checkpoint_1" / "checkpoint", content)
    with pytest.raises(CheckpointError, match=rf"checkpoint_1/checkpoint.*{reason}"):
        load_t5x_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (msgpack.ExtType(1, msgpack.packb(((4,), "float32", b"too short"))), "ValueError"),
        (msgpack.ExtType(1, b"\xc1"), "FormatError|ValueError"),
        (msgpack.ExtType(9, b"x"), "it is a ExtType instead of an array"),
        (writer.spec("../secret", np.zeros(3)) | {"driver": "n5"}, "driver 'n5'; only 'zarr' is known"),
        (writer.spec("..", np.zeros(3)), "its reference has the path '../'"),
        (writer.spec("", np.zeros(3)), "its reference has the path '/'"),
        (writer.spec("nowhere", np.zeros(3)), "nowhere cannot be read: its folder is missing"),
    ],
)
def test_a_leaf_that_is_no_array_is_named(tmp_path, leaf, reason):
    content = {"version": 3, "optimizer": {"target": {"dense": {"kernel": leaf}}, "state": {}}}
    writer.document(tmp_path / "checkpoint_1" / "checkpoint", content)
    with pytest.raises(CheckpointError, match=rf"target/dense/kernel in .*({reason})"):
        load_t5x_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"_optimizer": None}, "index .* no entry '_optimizer'"),
        ({"_optimizer": {"target": {"w": "PLACEHOLDER://.."}}}, "_optimizer/target/w in .*its placeholder is"),
        ({"_optimizer": {"target": {"w": "PLACEHOLDER://w"}}}, "_optimizer/target/w in .*its folder is missing"),
    ],
)
def test_a_damaged_early_orbax_checkpoint_is_named(tmp_path, content, reason):
    writer.document(tmp_path / "1" / "checkpoint", content)
    with pytest.raises(CheckpointError, match=reason):
        load_t5x_checkpoint(tmp_path)


def test_an_early_orbax_array_without_a_header_has_no_shape(tmp_path):
    writer.early_orbax(tmp_path / "1", {"target": {"w": trees.numbers(2)}, "state": {}}, header=False)
    with pytest.raises(CheckpointError, match=r"_optimizer/target/w in .*\.zarray is missing, and nothing else"):
        load_t5x_checkpoint(tmp_path)


def test_chunks_with_a_fill_value_may_be_missing(tmp_path):
    array = trees.numbers(4, 2)
    folder = tmp_path / "checkpoint_1"
    writer.zarr(folder / "target.w", array, (2, 2), fill_value=1.5)
    (folder / "target.w" / "1.0").unlink()
    content = {"version": 3, "optimizer": {"target": {"w": writer.spec("target.w", array, (2, 2))}, "state": {}}}
    writer.document(folder / "checkpoint", content)
    got = load_t5x_checkpoint(tmp_path)["target"]["w"]
    np.testing.assert_array_equal(got, np.concatenate([array[:2], np.full((2, 2), 1.5)]))
