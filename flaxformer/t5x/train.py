"""`t5x.train`: the entry point of a run file, by `flaxformer.training.runner.train`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from flaxformer.data.features import Converter, DecoderOnlyFeatures, EncoderDecoderFeatures
from flaxformer.t5x.adafactor import Adafactor
from flaxformer.t5x.optimizers import MultiOptimizer
from flaxformer.t5x.partitioning import PjitPartitioner
from flaxformer.t5x.trainer import Trainer
from flaxformer.t5x.utils import CheckpointConfig, DatasetConfig, SaveCheckpointConfig
from flaxformer.training import runner, sources
from flaxformer.training.batches import Batch
from flaxformer.training.model_base import BaseTransformerModel
from flaxformer.training.model_decoder_only import DecoderOnlyModel
from flaxformer.training.step import LossConfig

_NEVER = 2**31 - 1


def train(
    *,
    model: BaseTransformerModel,
    train_dataset_cfg: DatasetConfig | sources.Source,
    train_eval_dataset_cfg: DatasetConfig | sources.Source | None = None,
    infer_eval_dataset_cfg: DatasetConfig | None = None,
    checkpoint_cfg: CheckpointConfig | None = None,
    partitioner: PjitPartitioner | None = None,
    trainer_cls: Callable[[], Trainer] | None = None,
    model_dir: str | os.PathLike,
    total_steps: int,
    eval_steps: int | None = None,
    eval_period: int | None = None,
    stats_period: int | None = None,
    random_seed: int | None = None,
    use_hardware_rng: bool = False,
    inference_evaluator_cls: Any = None,
    relative_steps: int | None = None,
) -> runner.Outcome:
    """Trains as T5X's `train` is told to.

    Args:
      model: its loss, module and optimizer are used.
      train_dataset_cfg: what is trained on; any source of `flaxformer.training.sources` will do.
      train_eval_dataset_cfg: what `eval/` metrics are computed on.
      infer_eval_dataset_cfg, inference_evaluator_cls: not used: nothing is decoded during training.
      checkpoint_cfg: when to save, and what to start from.
      partitioner: must ask for one partition.
      trainer_cls: makes the `Trainer` that holds the learning rate.
      model_dir: the run's folder.
      total_steps: counted from the first step of the checkpoint that the run starts from; the run's own steps and
        checkpoints count from 0.
      eval_steps: batches per evaluation; all when None.
      eval_period: steps between evaluations.
      stats_period: steps between records; as `eval_period` when None.
      random_seed: 0 when None.
      use_hardware_rng: not used.
      relative_steps: trains so many steps, whatever `total_steps` says.

    Returns:
      The final state and the last metrics.

    Raises:
      ValueError: for more than one partition, for a model without an optimizer, for nothing left to train, and for
        whatever `runner.train` refuses.
    """
    _warn_of_what_is_left_out(infer_eval_dataset_cfg, inference_evaluator_cls)
    _check_partitions(partitioner)
    config = checkpoint_cfg or CheckpointConfig()
    save = config.save or SaveCheckpointConfig()
    initial = config.restore.initial() if config.restore is not None else None
    steps = _steps(total_steps, relative_steps, 0 if initial is None else initial.steps_done())
    trainer = trainer_cls() if trainer_cls is not None else Trainer()
    return runner.train(
        model.module,
        _source(train_dataset_cfg, model),
        _source(train_eval_dataset_cfg, model),
        optimizer=_optimizer(model.optimizer_def, trainer.learning_rate_fn),
        loss=_loss(model),
        steps=steps,
        run_dir=model_dir,
        log_every=stats_period or eval_period or 100,
        eval_every=eval_period or _NEVER,
        eval_batches=eval_steps,
        save_every=save.period or _NEVER,
        keep=save.keep,
        seed=random_seed or 0,
        init_from=initial,
        stop_when_not_finite=not getattr(model.optimizer_def, "skip_nan_updates", False),
    )


def _warn_of_what_is_left_out(infer_data: Any, evaluator: Any) -> None:
    if infer_data is not None or evaluator is not None:
        warnings.warn(
            "infer_eval_dataset_cfg and inference_evaluator_cls are not used: nothing is decoded during training. "
            "Decode checkpoints with flaxformer.decoding.generate.",
            stacklevel=3,
        )


def _check_partitions(partitioner: PjitPartitioner | None) -> None:
    if partitioner is not None and partitioner.partitions > 1:
        raise ValueError(
            f"the partitioner asks for {partitioner.partitions} partitions; expected 1: the loop trains on one device. "
            "Write a loop around flaxformer.training.step, with parameters placed by partitioner.shardings(variables)."
        )


def _steps(total: int, relative: int | None, done: int) -> int:
    steps = relative if relative is not None else total - done
    if steps < 1:
        raise ValueError(
            f"total_steps is {total} and the checkpoint to start from has {done} steps; expected more. "
            "Raise TRAIN_STEPS above the checkpoint's, or bind relative_steps."
        )
    return steps


def _source(config: DatasetConfig | sources.Source | None, model: BaseTransformerModel) -> sources.Source | None:
    if not isinstance(config, DatasetConfig):
        return config
    decoder_only = isinstance(model, DecoderOnlyModel)
    made: Any = model.FEATURE_CONVERTER_CLS
    default: Callable[[], Converter] = DecoderOnlyFeatures if decoder_only else EncoderDecoderFeatures
    source = config.source(default() if made is None else made(), decoder_only=decoder_only)
    causal = isinstance(model, DecoderOnlyModel) and not model._inputs_bidirectional_attention
    return _Without("decoder_causal_attention", source) if causal else source


@dataclasses.dataclass(frozen=True)
class _Without:
    """A source whose batches lack a feature, which the module would otherwise be called with."""

    feature: str
    source: Any

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        yield from map(self._reduced, self.source.batches(start_step))

    def epoch(self) -> Iterator[Batch]:
        yield from map(self._reduced, self.source.epoch())

    def _reduced(self, batch: Batch) -> Batch:
        return {name: array for name, array in batch.items() if name != self.feature}


def _loss(model: BaseTransformerModel) -> LossConfig:
    return LossConfig(
        label_smoothing=model._label_smoothing,
        z_loss=model._z_loss,
        loss_normalizing_factor=model._loss_normalizing_factor,
    )


def _optimizer(definition: Any, learning_rate: Any) -> Callable[..., Any]:
    """The function that `runner.train` makes the optimizer by."""
    if definition is None:
        raise ValueError("the model has no optimizer_def; expected one. Bind OPTIMIZER = @adafactor.Adafactor().")
    if isinstance(definition, Adafactor | MultiOptimizer):
        return functools.partial(definition, learning_rate)
    if learning_rate is None:
        return definition
    if not callable(definition) or "learning_rate" not in inspect.signature(definition).parameters:
        raise ValueError(
            f"Trainer.learning_rate_fn is bound, and optimizer_def is {definition!r}, which takes no learning_rate; "
            "expected one of the two. Bind the learning rate on the optimizer, or OPTIMIZER = @adafactor.Adafactor()."
        )
    return functools.partial(definition, learning_rate=learning_rate)
