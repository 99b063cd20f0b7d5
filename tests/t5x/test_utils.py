import sys
import types

import pytest

from flaxformer.data.features import EncoderDecoderFeatures
from flaxformer.t5x import utils

DATA = {
    "mixture_or_task_name": "mine",
    "task_feature_lengths": {"inputs": 8, "targets": 4},
    "split": "train",
    "batch_size": 3,
    "shuffle": True,
    "seed": 5,
}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: utils.SaveCheckpointConfig(dtype="float16"), "dtype is 'float16'; expected one of None, 'float32'"),
        (lambda: utils.RestoreCheckpointConfig("x", mode="newest"), "mode is 'newest'; expected one of 'specific'"),
        (lambda: utils.RestoreCheckpointConfig("x", dtype="int8"), "dtype is 'int8'; expected one of None"),
        (lambda: utils.RestoreCheckpointConfig("x", mode="all").initial(), r"mode 'all' and the paths \['x'\]"),
        (lambda: utils.RestoreCheckpointConfig(["x", "y"]).initial(), "expected one checkpoint to train from"),
        (lambda: source(runtime_preprocessors=[len]), "Put preprocessors into the task itself"),
        (lambda: source(module="no_such_module_here"), "'no_such_module_here', which cannot be imported"),
    ],
)
def test_what_t5x_refuses_or_cannot_be_done_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def source(**options):
    return utils.DatasetConfig(**DATA | options).source(EncoderDecoderFeatures())


def test_a_bfloat16_checkpoint_is_said_to_be_float32():
    with pytest.warns(UserWarning, match="checkpoints are saved in float32"):
        utils.SaveCheckpointConfig(dtype="bfloat16")


def test_what_a_run_starts_from():
    assert utils.RestoreCheckpointConfig([]).initial() is None
    given = utils.RestoreCheckpointConfig(["x"], strict=False, fallback_to_scratch=True).initial()
    assert (given.path, given.strict, given.fallback_to_scratch, given.optimizer) == ("x", False, True, True)


def test_the_module_of_a_data_set_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "registers_mine", types.ModuleType("registers_mine"))
    assert source(module="registers_mine").seed == 5
