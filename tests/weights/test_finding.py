"""A path means the latest checkpoint, a given one, one folder or one file; nothing else passes for a checkpoint."""

import numpy as np
import pytest

from flaxformer.weights.t5x import (
    CheckpointError,
    CheckpointType,
    detect_checkpoint_type,
    find_checkpoint,
    load_t5x_checkpoint,
)
from tests.weights import writer


def write(folder, step):
    return writer.native(folder, {"target": {}, "state": {"step": np.int32(step)}})


@pytest.fixture
def model(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path / f"checkpoint_{step}", step)
    write(tmp_path / "checkpoint_200.tmp-1700000000", 200)
    write(tmp_path / "checkpoint_300_old", 300)
    (tmp_path / "checkpoint_100" / "PINNED").touch()
    (tmp_path / "checkpoint_100" / "train_ds-000-of-001.index").touch()
    return tmp_path


def test_the_latest_step_is_the_largest_number(model):
    assert find_checkpoint(model) == model / "checkpoint_100"
    assert load_t5x_checkpoint(model)["state"]["step"] == 100
    assert load_t5x_checkpoint(str(model), step=9)["state"]["step"] == 9


def test_a_checkpoint_may_be_named_by_its_folder_or_its_document(model):
    for path in (model / "checkpoint_9", model / "checkpoint_9" / "checkpoint"):
        assert load_t5x_checkpoint(path)["state"]["step"] == 9
        assert load_t5x_checkpoint(path, step=9)["state"]["step"] == 9
        with pytest.raises(CheckpointError, match="is the checkpoint of step 9; expected step 10"):
            load_t5x_checkpoint(path, step=10)


@pytest.mark.parametrize(
    ("path", "step", "message"),
    [
        ("", 11, r"wanted step 11, found those of the steps 9, 10, 100"),
        ("nothing", None, "nothing does not exist"),
        ("empty", None, r"wanted any, found none \(checkpoint_<step>\)"),
        ("checkpoint_200.tmp-1700000000", None, "was never finished"),
    ],
)
def test_what_is_not_there_is_said(model, path, step, message):
    (model / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_checkpoint(model / path, step)


def test_a_place_on_the_network_is_refused_with_how_to_copy_it():
    with pytest.raises(CheckpointError, match="gs://t5-data/model lies elsewhere; expected a local path. Copy it"):
        find_checkpoint("gs://t5-data/model")


def test_forms_are_told_apart_by_what_they_hold(tmp_path):
    native = write(tmp_path / "native", 1)
    early = writer.early_orbax(tmp_path / "early", {"target": {}, "state": {"step": np.int32(1)}})
    (tmp_path / "present" / "state").mkdir(parents=True)
    (tmp_path / "present" / "state" / "_METADATA").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "_METADATA").touch()
    index = tmp_path / "mtf" / "checkpoint"
    index.parent.mkdir()
    index.write_text('model_checkpoint_path: "model.ckpt-1"\n')
    for path in (native, native / "checkpoint"):
        assert detect_checkpoint_type(path) is CheckpointType.T5X
    assert detect_checkpoint_type(early) is CheckpointType.ORBAX_EARLY
    assert detect_checkpoint_type(tmp_path / "present") is CheckpointType.ORBAX
    assert detect_checkpoint_type(tmp_path / "bare") is CheckpointType.ORBAX
    assert detect_checkpoint_type(index) is CheckpointType.TENSORFLOW
    with pytest.raises(
        CheckpointError, match="is an index of TensorFlow; expected a checkpoint of T5X.*load_tf_params"
    ):
        load_t5x_checkpoint(index.parent)


def test_a_folder_without_either_file_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint: it has neither a file 'checkpoint' nor '_METADATA'"):
        detect_checkpoint_type(tmp_path)
