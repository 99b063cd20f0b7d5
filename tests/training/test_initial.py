"""A run may start from a checkpoint: all of it, or a part, with or without the optimizer's statistics."""

import jax
import numpy as np
import pytest

from flaxformer.training import checkpoints, optimizers, runner
from flaxformer.training.initial import InitialCheckpoint
from flaxformer.training.state import initialize
from flaxformer.weights.t5x import CheckpointError
from tests.training import tiny
from tests.weights import writer

MODEL = tiny.Tables(dropout_rate=0.0)
QUIET = {"tensorboard": False, "progress": False}
ADAFACTOR = {"learning_rate": 0.0, "min_dim_size_to_factor": 4, "beta1": 0.9}


def numbers(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).uniform(0.5, 1.0, size=shape).astype("f")


def stored(names=("Embed_0", "Embed_1"), size=tiny.VOCABULARY):
    """A state as T5X stores it, Adafactor's statistics included."""
    nothing = np.zeros(1, "f")
    target = {name: {"embedding": numbers(size, size, seed=i)} for i, name in enumerate(names)}
    statistics = {
        name: {"embedding": {"v_row": numbers(size), "v_col": numbers(size), "v": nothing, "m": numbers(size, size)}}
        for name in names
    }
    return {"target": target, "state": {"step": np.asarray(40, np.int32), "param_states": statistics}}


@pytest.fixture
def state():
    return initialize(MODEL, optimizers.adafactor(**ADAFACTOR), tiny.batch())


def test_a_run_starts_from_the_parameters_of_a_t5x_checkpoint_and_goes_on_from_its_own(tmp_path):
    path, run = writer.native(tmp_path / "old" / "checkpoint_40", stored()), tmp_path / "run"
    arguments = {"optimizer": optimizers.adamw(0.0), "run_dir": run, "init_from": path} | QUIET
    first = runner.train(MODEL, tiny.Source(), steps=2, **arguments)
    jax.tree.map(np.testing.assert_array_equal, first.state.params, stored()["target"])
    assert first.state.step == 2 and checkpoints.steps(run) == [2]
    writer.native(tmp_path / "other" / "checkpoint_1", stored(("Wrong",)))
    again = runner.train(MODEL, tiny.Source(), steps=3, **arguments | {"init_from": tmp_path / "other"})
    jax.tree.map(np.testing.assert_array_equal, again.state.params, first.state.params)


def test_the_statistics_and_the_count_of_adafactor_go_on(tmp_path, state):
    state, optimizer = state
    given = InitialCheckpoint(writer.native(tmp_path / "checkpoint_40", stored()), optimizer=True)
    got = given.into(MODEL, state, optimizer)
    factored = next(part for part in got.opt_state if hasattr(part, "v_row"))
    momentum = next(part for part in got.opt_state if hasattr(part, "ema"))
    expected = stored()["state"]["param_states"]
    for name, leaves in expected.items():
        for field in ("v_row", "v_col", "v"):
            np.testing.assert_array_equal(getattr(factored, field)[name]["embedding"], leaves["embedding"][field])
        np.testing.assert_array_equal(momentum.ema[name]["embedding"], leaves["embedding"]["m"])
    assert factored.count == momentum.count == 40 and given.steps_done() == 40
    assert got.step == 0
    plain = InitialCheckpoint(given.path).into(MODEL, state, optimizer)
    assert next(part for part in plain.opt_state if hasattr(part, "v_row")).count == 0


def test_statistics_that_are_not_all_there_are_left_out(tmp_path, state):
    state, optimizer = state
    saved = stored()
    del saved["state"]["param_states"]["Embed_1"]
    given = InitialCheckpoint(writer.native(tmp_path / "checkpoint_40", saved), optimizer=True)
    factored = next(part for part in given.into(MODEL, state, optimizer).opt_state if hasattr(part, "v_row"))
    assert factored.count == 0 and not factored.v_row["Embed_0"]["embedding"].any()


def test_a_part_is_renamed_and_the_rest_drawn_afresh(tmp_path, state):
    state, optimizer = state
    path = writer.native(tmp_path / "checkpoint_40", stored(("Old_0", "Unused")))
    rules = [(r"(target|state/param_states)/Embed_0/(.*)", r"\1/Old_0/\2"), (r"target/Embed_1/.*", None)]
    with pytest.raises(CheckpointError, match="unexpected Unused/embedding"):
        InitialCheckpoint(path, assignment_map=rules, fallback_to_scratch=True).into(MODEL, state, optimizer)
    with pytest.raises(CheckpointError, match="missing Embed_1/embedding"):
        InitialCheckpoint(path, assignment_map=rules, strict=False).into(MODEL, state, optimizer)
    given = InitialCheckpoint(path, assignment_map=rules, strict=False, fallback_to_scratch=True, optimizer=True)
    got = given.into(MODEL, state, optimizer)
    np.testing.assert_array_equal(got.params["Embed_0"]["embedding"], stored()["target"]["Embed_0"]["embedding"])
    np.testing.assert_array_equal(got.params["Embed_1"]["embedding"], state.params["Embed_1"]["embedding"])


def test_a_checkpoint_of_this_library_will_do(tmp_path):
    first = runner.train(
        MODEL, tiny.Source(), optimizer=optimizers.adamw(0.1), steps=2, run_dir=tmp_path / "first", **QUIET
    )
    second = runner.train(
        MODEL, tiny.Source(), optimizer=optimizers.adamw(0.0), steps=1, run_dir=tmp_path / "second",
        init_from=str(tmp_path / "first"), **QUIET,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, second.state.params, first.state.params)
