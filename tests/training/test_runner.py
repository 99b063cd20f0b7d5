import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from flaxformer.training import checkpoints, optimizers, records, runner
from tests.training import resumable_run, tiny

ROOT = pathlib.Path(__file__).parents[2]
MODEL = tiny.Tables()
QUIET = {"tensorboard": False, "progress": False}
TIMES = {"seconds", "tokens_per_second"}


def start(folder, seconds, kind):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.resumable_run", str(folder), str(seconds), kind]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()


def timeless(folder):
    return [{name: x for name, x in record.items() if name not in TIMES} for record in records.read(folder)]


@pytest.mark.parametrize(
    ("kind", "kills"), [("plain", [10]), pytest.param("full", [5, 20, 45], marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_with_the_parameters_and_records_of_an_unbroken_one(tmp_path, kind, kills):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unbroken, process = start(whole, 0, kind), start(killed, 0.03, kind)
    for step in kills:
        while max(checkpoints.steps(killed), default=0) < step and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.1)  # some steps on, past the next record
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(killed, 0.03, kind)
    finish(process)
    finish(unbroken)
    assert checkpoints.steps(killed) == checkpoints.steps(whole) == [55, 60]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_params(killed), checkpoints.restore_params(whole))
    assert timeless(killed) == timeless(whole)
    due = [step for step in range(1, resumable_run.STEPS + 1) if not (step % 4 and step % 5 and step % 7)]
    assert [record["step"] for record in records.read(killed)] == due


def test_a_run_learns_records_and_shows_what_it_does(tmp_path, capsys):
    outcome = runner.train(
        MODEL,
        tiny.Source(),
        [tiny.batch(99)],
        optimizer=optimizers.adamw(0.1),
        steps=100,
        run_dir=tmp_path,
        log_every=25,
        save_every=50,
        keep=1,
    )
    found = records.read(tmp_path)
    assert [record["step"] for record in found] == [25, 50, 75, 100]
    assert ["eval/loss" in record for record in found] == [False, True, False, True]
    assert found[-1] == {"step": 100} | outcome.metrics
    assert found[-1]["loss"] < found[0]["loss"] / 1.5
    assert found[0]["tokens"] == 25 * 40 and found[0]["tokens_per_second"] > 0
    assert outcome.state.step == 100 and checkpoints.steps(tmp_path) == [100]
    assert "step 100/100  loss" in capsys.readouterr().out
    assert (tmp_path / records.TENSORBOARD).is_dir() and (tmp_path / records.PLOT).exists()


def test_a_finished_run_is_left_as_it_is(tmp_path):
    arguments = {"optimizer": optimizers.adamw(0.01), "steps": 3, "run_dir": tmp_path} | QUIET
    first = runner.train(MODEL, tiny.Source(), **arguments)
    before = (tmp_path / records.METRICS).read_text()
    again = runner.train(MODEL, tiny.Source(), **arguments)
    assert again.metrics == {} and (tmp_path / records.METRICS).read_text() == before
    jax.tree.map(np.testing.assert_array_equal, again.state.params, first.state.params)


def test_going_on_asks_the_source_for_the_step_to_come(tmp_path):
    source = tiny.Source()
    for steps in (2, 5):
        runner.train(MODEL, source, optimizer=optimizers.adamw(0.01), steps=steps, run_dir=tmp_path, **QUIET)
    assert source.asked == [0, 2]


def test_each_shape_of_batch_is_compiled_once(tmp_path, monkeypatch):
    traced = []
    original = runner.make_train_step

    def counting(*arguments):
        step = original(*arguments)

        def train_step(state, batch):
            traced.append(batch["decoder_input_tokens"].shape)
            return step(state, batch)

        return train_step

    monkeypatch.setattr(runner, "make_train_step", counting)
    source = tiny.Source(lengths=(6, 4))
    runner.train(MODEL, source, optimizer=optimizers.adamw(0.01), steps=8, run_dir=tmp_path, log_every=3, **QUIET)
    assert sorted(traced) == [(4, 4), (4, 6)]


class Broken(tiny.Source):
    """The loss of step 7 is infinite."""

    def batches(self, start_step=0):
        for step, batch in enumerate(super().batches(start_step), start_step + 1):
            weights = np.full_like(batch["decoder_loss_weights"], np.inf) if step == 7 else 1.0
            yield batch | {"decoder_loss_weights": batch["decoder_loss_weights"] + weights}


@pytest.mark.parametrize(("save_every", "good"), [(5, "is .*checkpoint_5"), (100, "there is none")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, save_every, good):
    with pytest.raises(ValueError, match=rf"loss is \w+ at step 7; expected a finite number.* {good}") as caught:
        runner.train(
            MODEL,
            Broken(),
            optimizer=optimizers.adamw(0.01),
            steps=20,
            run_dir=tmp_path,
            save_every=save_every,
            **QUIET,
        )
    assert isinstance(caught.value, runner.NonFiniteError) and "batches(6)" in str(caught.value)
    assert max(checkpoints.steps(tmp_path), default=0) <= 5


def test_data_that_ends_too_soon_is_named(tmp_path):
    with pytest.raises(ValueError, match="the training data ended before step 4; expected a batch for every step"):
        runner.train(MODEL, tiny.Source(steps=3), optimizer=optimizers.adamw(0.01), steps=9, run_dir=tmp_path, **QUIET)


@pytest.mark.parametrize("name", ["steps", "log_every", "eval_every", "save_every"])
def test_intervals_below_one_are_refused(tmp_path, name):
    arguments = {"steps": 3, "eval_every": 5} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        runner.train(MODEL, tiny.Source(), optimizer=optimizers.adamw(0.01), run_dir=tmp_path, **arguments)


def test_an_evaluation_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="the evaluation data has no batch"):
        runner.evaluate(lambda params, batch: {}, {}, [tiny.batch()], batches=0)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    arguments = {"optimizer": optimizers.adamw(0.01), "run_dir": tmp_path} | QUIET
    runner.train(MODEL, tiny.Source(), steps=1, **arguments)
    with pytest.raises(ValueError, match=r"target/Embed_0/embedding is float32\[11, 11\], expected float32\[12, 11\]"):
        runner.train(tiny.Tables(rows=12), tiny.Source(), steps=2, **arguments)
