"""`t5x.utils`: the objects that a run file configures."""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from flaxformer.data.batching import Bucket
from flaxformer.data.features import Converter
from flaxformer.data.seqio_bridge import SeqioBatches
from flaxformer.training.initial import InitialCheckpoint
from flaxformer.training.schedules import create_learning_rate_scheduler

__all__ = [
    "CheckpointConfig",
    "DatasetConfig",
    "RestoreCheckpointConfig",
    "SaveCheckpointConfig",
    "create_learning_rate_scheduler",
]


@dataclasses.dataclass(frozen=True)
class SaveCheckpointConfig:
    """When a run saves.

    Attributes:
      dtype: 'float32', 'bfloat16' or None. Parameters are saved as they are trained, in float32.
      period: steps between checkpoints; None: one at the end.
      checkpoint_steps: unused.
      keep: how many stay; all when None.
      keep_dataset_checkpoints, save_dataset: unused: batches depend on the step alone.
      checkpointer_cls, state_transformation_fns, checkpoint_manager_cls: unused: checkpoints have this library's form,
        which `flaxformer convert` turns into T5X's.
    """

    dtype: str | None = "float32"
    period: int | None = None
    checkpoint_steps: Sequence[int] | None = None
    keep: int | None = None
    keep_dataset_checkpoints: int | None = None
    save_dataset: bool = False
    checkpointer_cls: Any = None
    state_transformation_fns: Sequence[Any] = ()
    checkpoint_manager_cls: Any = None

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, (None, "float32", "bfloat16"))
        if self.dtype == "bfloat16":
            warnings.warn(
                "SaveCheckpointConfig.dtype is 'bfloat16'; checkpoints are saved in float32, so that a run goes on "
                "exactly. Cast the last one: flaxformer convert --to t5x --dtype bfloat16.",
                stacklevel=3,
            )


@dataclasses.dataclass(frozen=True)
class RestoreCheckpointConfig:
    """What a run starts from.

    Attributes:
      path: of a checkpoint, or of a model's folder; a list of one; an empty list for fresh parameters.
      mode: 'specific' (the checkpoint at `path`) or 'latest' (the latest in `path`).
      assignment_map: see `flaxformer.weights.assignment`.
      strict: refuse what the model does not have.
      fallback_to_scratch: what the checkpoint does not have is drawn afresh.
      dtype: accepted: parameters are float32 here.
      restore_dataset: unused.
      checkpointer_cls, checkpoint_manager_cls: unused: the form of a checkpoint is told by what it holds.
      state_transformation_fns: unused: a model's own remapping is applied without being asked.
    """

    path: str | os.PathLike | Sequence[str]
    mode: str = "latest"
    assignment_map: Sequence[tuple[str, str | None]] | None = None
    strict: bool = True
    fallback_to_scratch: bool = False
    dtype: str | None = None
    restore_dataset: bool = False
    checkpointer_cls: Any = None
    state_transformation_fns: Sequence[Any] = ()
    checkpoint_manager_cls: Any = None

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, ("specific", "latest", "all"))
        _one_of("dtype", self.dtype, (None, "float32", "float16", "bfloat16"))

    def initial(self) -> InitialCheckpoint | None:
        """The checkpoint to train from; None for fresh parameters.

        Raises:
          ValueError: for several.
        """
        paths = [self.path] if isinstance(self.path, str | os.PathLike) else list(self.path)
        if self.mode == "all" or len(paths) > 1:
            raise ValueError(
                f"RestoreCheckpointConfig has mode {self.mode!r} and the paths {paths}; expected one checkpoint to "
                "train from. Choose one, with mode 'specific' or 'latest'."
            )
        if not paths:
            return None
        return InitialCheckpoint(
            paths[0],
            assignment_map=self.assignment_map or (),
            strict=self.strict,
            fallback_to_scratch=self.fallback_to_scratch,
            optimizer=True,
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saving and restoring together."""

    save: SaveCheckpointConfig | None = None
    restore: RestoreCheckpointConfig | None = None


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """A seqio task or mixture, and how its batches are made.

    Attributes:
      mixture_or_task_name: registered with seqio, or a task.
      task_feature_lengths: tokens per row of each feature.
      split: of the data.
      batch_size: rows per batch.
      shuffle: by seqio.
      seed: of shuffling; 0 when None.
      pack: several examples per row.
      module: imported first: it registers the task.
      use_cached, use_custom_packing_ops, use_memory_cache, num_prefetch_threads, num_workers: unused: they concern
        speed.
      trim_output_features: features are always trimmed to their lengths.
      runtime_preprocessors: none; put them into the task.
    """

    mixture_or_task_name: Any
    task_feature_lengths: Mapping[str, int]
    split: str
    batch_size: int
    shuffle: bool
    seed: int | None
    use_cached: bool = False
    pack: bool = False
    use_custom_packing_ops: bool = False
    module: str | None = None
    use_memory_cache: bool = True
    trim_output_features: bool = True
    runtime_preprocessors: Any = None
    num_prefetch_threads: int | None = None
    num_workers: int = 0

    def source(self, converter: Converter, *, decoder_only: bool = False) -> SeqioBatches:
        """The batches, for `flaxformer.training.runner.train`.

        Args:
          converter: see `flaxformer.data.features`.
          decoder_only: whether inputs and targets share a row.

        Raises:
          ValueError: for runtime preprocessors, and for a module that cannot be imported.
        """
        if self.runtime_preprocessors or not self.trim_output_features:
            raise ValueError(
                f"DatasetConfig has runtime_preprocessors={self.runtime_preprocessors} and trim_output_features="
                f"{self.trim_output_features}; expected None and True. Put preprocessors into the task itself."
            )
        if self.module is not None:
            _import(self.module)
        lengths = [
            self.task_feature_lengths[name] for name in ("inputs", "targets") if name in self.task_feature_lengths
        ]
        row = (sum(lengths),) if decoder_only else tuple(lengths)
        return SeqioBatches(
            self.mixture_or_task_name,
            self.task_feature_lengths,
            converter,
            Bucket(row, self.batch_size),
            split=self.split,
            packed=self.pack,
            shuffle=self.shuffle,
            seed=self.seed or 0,
        )


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"DatasetConfig.module is {module!r}, which cannot be imported ({error}); expected the module that "
            "registers the task. Install it or correct the name."
        ) from error


def _one_of(name: str, value: Any, expected: Sequence[Any]) -> None:
    if value not in expected:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, expected))}.")
