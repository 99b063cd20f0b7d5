"""A seqio `Task` or `Mixture` in, batches with T5X's feature names out.

seqio reads, preprocesses, tokenizes, trims and shuffles; from there on the same converters and the same packing serve
as for examples in memory. Needs the extra `seqio` (seqio with its TensorFlow), imported when a source is first read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from flaxformer.data.batching import Bucket
from flaxformer.data.features import Batch, Converter, Example, Row
from flaxformer.data.packing import pack
from flaxformer.extras import require

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, eq=False)
class SeqioBatches:
    """Batches of a seqio task or mixture: endless for training (`batches`), one pass for evaluation (`epoch`).

        source = SeqioBatches(
            "my_task", {"inputs": 64, "targets": 32}, EncoderDecoderFeatures(), Bucket((64, 32), rows=16), packed=True
        )
        for batch in source.batches(start_step=1000): ...

    `batches(start_step)` reads the same stream for the same seed, and reaches a later step by reading what comes before
    it: a task's preprocessors may be anything, so nothing shorter is exact. Splits that fit in memory resume at once
    when `list(source.examples())` is given to `flaxformer.data.batching.Batches`.

    Attributes:
      task: a task or mixture, or the name under which it is registered.
      task_feature_lengths: what seqio trims each feature to; None for a feature leaves it as it is.
      converter: what kind of model reads the batches.
      bucket: lengths and rows of the batches. An encoder-decoder row has room for (inputs, targets), a decoder-only row
        for both together; packing may use longer rows than an example needs.
      split: of the task's data.
      packed: several examples per row, with segment ids and positions.
      open_rows: see `flaxformer.data.packing.pack`.
      shuffle: by seqio, whose buffer mixes nearby examples only.
      seed: of the shuffling and of a mixture's choices.
    """

    task: Any
    task_feature_lengths: Mapping[str, int | None]
    converter: Converter
    bucket: Bucket
    split: str = "train"
    packed: bool = False
    open_rows: int = 64
    shuffle: bool = True
    seed: int = 0

    def examples(self, num_epochs: int | None = 1) -> Iterator[Example]:
        """Tokenized examples as numpy arrays.

        Args:
          num_epochs: passes over the split; None repeats it without end.

        Raises:
          ValueError: for a name that is not registered, and for a split that the task does not have.
        """
        task = self._resolve()
        if self.split not in task.splits:
            raise ValueError(
                f"split is {self.split!r}; expected one of {sorted(task.splits)}, which {task.name} has. "
                "Choose one of them, or add the split to the task's source."
            )
        dataset = task.get_dataset(
            dict(self.task_feature_lengths), self.split, shuffle=self.shuffle, seed=self.seed, num_epochs=num_epochs
        )
        for example in dataset.as_numpy_iterator():
            yield {key: example[key].astype(np.int32) for key in ("inputs", "targets") if key in example}

    def epoch(self) -> Iterator[Batch]:
        """One pass over the split; the last batch is filled up with empty rows."""
        yield from self._lay_out(self.examples(num_epochs=1))

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Endless batches from `start_step` on.

        Raises:
          ValueError: for a negative step, and for a split without examples when its first batch is asked for.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; expected 0 or more.")
        return self._endless(start_step)

    def _endless(self, start_step: int) -> Iterator[Batch]:
        groups = _groups(self._rows(self.examples(num_epochs=None)), self.bucket.rows)
        yield from map(self._build, itertools.islice(groups, start_step, None))
        raise ValueError(
            f"split {self.split!r} of {self.task} is empty, or its task ends a repeated data set; expected endless "
            "examples. Is the split's file empty, or does a preprocessor drop every example?"
        )

    def _resolve(self) -> Any:
        seqio = require("seqio", extra="seqio")
        if not isinstance(self.task, str):
            return self.task
        known = sorted(set(seqio.TaskRegistry.names()) | set(seqio.MixtureRegistry.names()))
        if self.task not in known:
            raise ValueError(
                f"task is {self.task!r}; expected the name of a registered task or mixture, of which there are "
                f"{len(known)}: {', '.join(known[:20])}. Import the module that registers it first."
            )
        return seqio.get_mixture_or_task(self.task)

    def _rows(self, examples: Iterable[Example]) -> Iterator[Row]:
        if self.packed:
            return pack(examples, self.converter.sizes, self.bucket.lengths, self.open_rows)
        return ([example] for example in examples)

    def _lay_out(self, examples: Iterable[Example]) -> Iterator[Batch]:
        return map(self._build, _groups(self._rows(examples), self.bucket.rows))

    def _build(self, rows: list[Row]) -> Batch:
        rows = rows + [[]] * (self.bucket.rows - len(rows))
        return self.converter(rows, self.bucket.lengths, packed=self.packed)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter when they run out."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
