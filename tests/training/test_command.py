import pytest

from flaxformer import cli
from flaxformer.training import checkpoints, command, records

RUN = """
from __gin__ import dynamic_registration
from flaxformer.training import optimizers
from flaxformer.training import runner
from flaxformer.training import step as step_lib
from tests.training import tiny

TRAIN_STEPS = 100

runner.train.model = @tiny.Tables()
runner.train.train_data = @tiny.Source()
runner.train.optimizer = @optimizers.adamw
runner.train.loss = @step_lib.LossConfig()
runner.train.steps = %TRAIN_STEPS
runner.train.run_dir = %MODEL_DIR
runner.train.tensorboard = False
optimizers.adamw.learning_rate = 0.1
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(RUN)
    return path


def test_a_gin_file_and_flags_make_a_run(tmp_path, run_file):
    folder = tmp_path / "run"
    flags = [f"--gin.MODEL_DIR={str(folder)!r}", "--gin.TRAIN_STEPS=3", "--gin.tiny.Tables.dropout_rate=0.0"]
    assert cli.main(["train", f"--gin_file={run_file}", *flags]) == 0
    assert checkpoints.steps(folder) == [3] and records.read(folder)[-1]["step"] == 3
    written = (folder / command.CONFIG).read_text()
    assert written.splitlines() == [
        f"include {str(run_file)!r}",
        f"MODEL_DIR = {str(folder)!r}",
        "TRAIN_STEPS = 3",
        "tiny.Tables.dropout_rate = 0.0",
    ]


def test_what_a_run_was_started_with_starts_it_again(tmp_path, run_file):
    folder = tmp_path / "run"
    assert cli.main(["train", f"--gin_file={run_file}", f"--gin.MODEL_DIR={str(folder)!r}", "--gin.TRAIN_STEPS=1"]) == 0
    assert cli.main(["train", f"--gin_file={folder / command.CONFIG}", "--gin.TRAIN_STEPS=2"]) == 0
    assert max(checkpoints.steps(folder)) == 2


def test_what_is_missing_is_said_without_a_traceback(tmp_path, run_file, capsys):
    assert cli.main(["train", f"--gin_file={run_file}"]) == 2
    assert "MODEL_DIR is not defined" in capsys.readouterr().err
    assert cli.main(["train"]) == 2
    assert "expected --gin_file=FILE at least once" in capsys.readouterr().err
    assert cli.main(["train", f"--gin_file={tmp_path / 'nowhere.gin'}"]) == 2
    assert "nowhere.gin" in capsys.readouterr().err
