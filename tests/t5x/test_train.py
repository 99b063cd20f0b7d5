"""T5X's `train` does what its arguments say, by the runner."""

import functools

import jax
import numpy as np
import pytest

from flaxformer.t5x import partitioning, utils
from flaxformer.t5x.adafactor import Adafactor
from flaxformer.t5x.optimizers import MultiOptimizer
from flaxformer.t5x.train import train
from flaxformer.t5x.trainer import Trainer
from flaxformer.training import checkpoints, records, runner
from flaxformer.training.models import DecoderOnlyModel, EncoderDecoderModel
from flaxformer.training.schedules import create_learning_rate_scheduler
from flaxformer.training.step import LossConfig
from tests.training import tiny
from tests.weights import writer


def model(optimizer=Adafactor(), **options):  # noqa: B008
    return EncoderDecoderModel(tiny.Tables(dropout_rate=0.0), None, None, optimizer, z_loss=0.1, **options)


def constant_rate(rate):
    return functools.partial(Trainer, learning_rate_fn=create_learning_rate_scheduler("constant", rate))


@pytest.fixture
def given(monkeypatch):
    """What the runner is called with."""
    calls = []
    monkeypatch.setattr(runner, "train", lambda *args, **keywords: calls.append((args, keywords)))

    def call(**arguments):
        arguments = {"train_dataset_cfg": [tiny.batch()], "model_dir": "runs/1", "total_steps": 10} | arguments
        train(**{"model": model()} | arguments)
        return calls[-1]

    return call


def test_a_run_learns_saves_and_goes_on(tmp_path):
    arguments = {
        "train_dataset_cfg": tiny.Source(),
        "train_eval_dataset_cfg": [tiny.batch(9)],
        "checkpoint_cfg": utils.CheckpointConfig(utils.SaveCheckpointConfig(period=2, keep=2)),
        "trainer_cls": constant_rate(0.1),
        "model_dir": tmp_path,
        "eval_period": 3,
        "random_seed": 1,
    }
    outcome = train(model=model(), total_steps=5, **arguments)
    assert checkpoints.steps(tmp_path) == [4, 5] and outcome.state.step == 5
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(outcome.state.params))
    assert [r["step"] for r in records.read(tmp_path) if "eval/loss" in r] == [3, 5]
    assert train(model=model(), total_steps=6, **arguments).state.step == 6


def test_arguments_reach_the_runner_under_its_names(given):
    save = utils.SaveCheckpointConfig(period=7, keep=None)
    (module, data, held_out), options = given(
        checkpoint_cfg=utils.CheckpointConfig(save=save), eval_steps=3, eval_period=4, stats_period=5, random_seed=6
    )
    assert isinstance(module, tiny.Tables) and held_out is None and len(data) == 1
    expected = {"save_every": 7, "keep": None, "eval_batches": 3, "eval_every": 4, "log_every": 5, "seed": 6}
    assert {name: options[name] for name in expected} == expected
    assert options["loss"] == LossConfig(0.0, 0.1, None) and options["steps"] == 10
    assert options["init_from"] is None and options["stop_when_not_finite"]


def test_steps_are_counted_from_those_of_the_initial_checkpoint(given, tmp_path):
    path = writer.native(
        tmp_path / "checkpoint_40", {"target": {"a": np.ones(2, "f")}, "state": {"step": np.int32(40)}}
    )
    restore = utils.RestoreCheckpointConfig(str(path), mode="specific", assignment_map=[("target/a", "target/b")])
    config = utils.CheckpointConfig(restore=restore)
    _, options = given(checkpoint_cfg=config, total_steps=45)
    assert options["steps"] == 5 and options["init_from"].assignment_map == [("target/a", "target/b")]
    assert given(checkpoint_cfg=config, total_steps=1, relative_steps=8)[1]["steps"] == 8
    with pytest.raises(ValueError, match="total_steps is 40 and the checkpoint to start from has 40 steps"):
        given(checkpoint_cfg=config, total_steps=40)


def test_the_optimizer_is_made_with_the_trainers_learning_rate(given):
    params = {"a": np.ones(2, "f"), "b": np.ones(2, "f")}

    def first_update(definition, **arguments):
        optimizer = given(model=model(definition), **arguments)[1]["optimizer"]()
        return optimizer.update(params, optimizer.init(params), params)[0]

    rated = {"trainer_cls": constant_rate(0.5)}
    np.testing.assert_allclose(first_update(Adafactor(), **rated)["a"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(first_update(Adafactor(learning_rate=0.25))["a"], -0.25, rtol=1e-5)
    only = first_update(MultiOptimizer([("a", Adafactor())]), **rated)
    np.testing.assert_allclose([only["a"][0], only["b"][0]], [-0.5, 0.0], rtol=1e-5)
    from flaxformer.training import optimizers

    np.testing.assert_allclose(first_update(optimizers.adafactor, **rated)["a"], -0.5, rtol=1e-5)
    assert not given(model=model(Adafactor(skip_nan_updates=True)))[1]["stop_when_not_finite"]
    with pytest.raises(ValueError, match="which takes no learning_rate; expected one of the two"):
        given(model=model(optimizers.adamw(0.1)), **rated)
    with pytest.raises(ValueError, match="the model has no optimizer_def"):
        given(model=model(None))


def test_data_is_laid_out_for_the_kind_of_model(given):
    config = utils.DatasetConfig("mine", {"inputs": 8, "targets": 4}, "train", 3, False, None, pack=True)
    source = given(train_dataset_cfg=config)[0][1]
    assert (source.task, source.bucket.lengths, source.bucket.rows) == ("mine", (8, 4), 3)
    assert (source.packed, source.seed, source.shuffle) == (True, 0, False)

    class Converter:
        pass

    own = model(feature_converter_cls=Converter)
    assert isinstance(given(train_dataset_cfg=config, model=own)[0][1].converter, Converter)


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_causal_model_is_not_told_of_its_inputs_part(given, both_ways):
    lm = DecoderOnlyModel(tiny.DecoderOnly(), None, Adafactor(), inputs_bidirectional_attention=both_ways)
    config = utils.DatasetConfig("mine", {"inputs": 8, "targets": 4}, "train", 3, False, 0)
    source = given(train_dataset_cfg=config, model=lm)[0][1]
    inner = source if both_ways else source.source
    assert inner.bucket.lengths == (12,)
    if not both_ways:
        object.__setattr__(source, "source", _Fixed())
        expected = [{"decoder_input_tokens": 1}]
        assert list(source.epoch()) == list(source.batches(3)) == expected


class _Fixed:
    def batches(self, start_step):
        assert start_step == 3
        yield {"decoder_input_tokens": 1, "decoder_causal_attention": 2}

    def epoch(self):
        yield from self.batches(3)


def test_what_is_left_out_is_said(given):
    with pytest.warns(UserWarning, match="nothing is decoded during training"):
        given(inference_evaluator_cls=object)


def test_one_partition_is_what_this_loop_has(given, monkeypatch):
    assert given(partitioner=partitioning.PjitPartitioner(num_partitions=1))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(ValueError, match="the partitioner asks for 4 partitions; expected 1"):
        given(partitioner=partitioning.PjitPartitioner(model_parallel_submesh=(2, 2, 1, 1)))
