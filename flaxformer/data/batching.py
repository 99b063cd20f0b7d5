"""Batches of few shapes from examples in memory: the same for the same seed and step, whoever asks and when.

Every distinct shape of a batch costs one compilation, and padding costs time at every step. `Batches` therefore sorts
examples into a few *buckets* of fixed lengths and rows (`Padded`), or packs them into rows of one length (`Packed`).

What depends on the sizes of the examples is planned once; an epoch only renames examples of equal size, reorders rows
and shuffles batches, all by (seed, epoch). Every epoch therefore has the same number of steps, and
`batches(start_step)` reaches any step without making the ones before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from flaxformer.data.features import Batch, Converter, Example
from flaxformer.data.packing import pack


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One shape of batch.

    Attributes:
      lengths: tokens per row on each axis of the converter.
      rows: rows per batch.
    """

    lengths: tuple[int, ...]
    rows: int


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """A batch before it is laid out: which examples (indices) share which row."""

    bucket: Bucket
    rows: tuple[tuple[int, ...], ...]


@runtime_checkable
class Layout(Protocol):
    """How examples become rows, from their sizes alone."""

    packed: bool

    def __call__(self, sizes: Int[np.ndarray, "N A"], buckets: Sequence[Bucket]) -> list[list[tuple[int, ...]]]:
        """For each bucket, its rows of example indices; every index in exactly one row."""
        ...


@dataclasses.dataclass(frozen=True)
class Padded:
    """One example per row, in the first bucket that it fits."""

    packed = False

    def __call__(self, sizes: Int[np.ndarray, "N A"], buckets: Sequence[Bucket]) -> list[list[tuple[int, ...]]]:
        fits = np.stack([(sizes <= np.asarray(bucket.lengths)).all(axis=1) for bucket in buckets], axis=1)
        homeless = np.flatnonzero(~fits.any(axis=1))
        if homeless.size:
            raise ValueError(
                f"{homeless.size} example(s) fit no bucket, the first is number {homeless[0]} of sizes "
                f"{tuple(sizes[homeless[0]].tolist())}; expected at most one of {[b.lengths for b in buckets]}. "
                "Add a longer bucket, or trim the examples first."
            )
        home = fits.argmax(axis=1)
        return [[(int(index),) for index in np.flatnonzero(home == number)] for number in range(len(buckets))]


@dataclasses.dataclass(frozen=True)
class Packed:
    """As many examples per row as fit, in one bucket.

    Attributes:
      open_rows: see `flaxformer.data.packing.pack`.
    """

    open_rows: int = 64
    packed = True

    def __call__(self, sizes: Int[np.ndarray, "N A"], buckets: Sequence[Bucket]) -> list[list[tuple[int, ...]]]:
        if len(buckets) != 1:
            raise ValueError(f"packing got {len(buckets)} buckets; expected one, whose rows are filled with examples.")
        # A fixed shuffle: neighbours in a data set often resemble each other, and rows should mix.
        order = np.random.default_rng(0).permutation(len(sizes)).tolist()
        return [[tuple(row) for row in pack(order, sizes.__getitem__, buckets[0].lengths, self.open_rows)]]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """A source of batches, endless for training (`batches`) or one pass for evaluation (`epoch`).

    The last batch of a bucket is filled up with empty rows, which carry no loss weight, so that every example comes
    exactly once per epoch and no shape is added.

    >>> from flaxformer.data.features import EncoderDecoderFeatures
    >>> examples = [{"inputs": np.arange(1, n + 2), "targets": np.array([1])} for n in range(6)]
    >>> source = Batches(examples, EncoderDecoderFeatures(), [Bucket((3, 1), rows=2), Bucket((6, 1), rows=2)])
    >>> source.steps_per_epoch
    4
    >>> sorted({batch["encoder_input_tokens"].shape for batch in source.epoch()})
    [(2, 3), (2, 6)]

    Attributes:
      examples: in memory; see `flaxformer.data.features`.
      converter: what kind of model reads the batches.
      buckets: the shapes of batch, shortest first.
      layout: `Padded()` or `Packed()`.
      shuffle: by seed and epoch; else examples keep their order within each bucket, as long as they are not packed.
      seed: of the shuffling.
      trim: cut examples to the last bucket's lengths instead of refusing the longer ones.
    """

    examples: Sequence[Example]
    converter: Converter
    buckets: Sequence[Bucket]
    layout: Layout = Padded()
    shuffle: bool = True
    seed: int = 0
    trim: bool = False

    def __post_init__(self) -> None:
        if not len(self.examples):
            raise ValueError("there are no examples; expected at least one. Is the split or the filter empty?")
        if not self.buckets or any(bucket.rows < 1 for bucket in self.buckets):
            raise ValueError(f"buckets is {list(self.buckets)}; expected at least one, each with at least one row.")
        if self.trim:
            lengths = self.buckets[-1].lengths
            object.__setattr__(self, "examples", [self.converter.trim(example, lengths) for example in self.examples])

    @functools.cached_property
    def sizes(self) -> Int[np.ndarray, "N A"]:
        """Tokens that each example takes on each axis; reading it checks every example."""
        return np.array([self.converter.sizes(example) for example in self.examples], np.int64)

    @functools.cached_property
    def _rows(self) -> list[list[tuple[int, ...]]]:
        return self.layout(self.sizes, self.buckets)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return sum(-(-len(rows) // bucket.rows) for rows, bucket in zip(self._rows, self.buckets, strict=True))

    def plan(self, epoch: int = 0) -> list[PlannedBatch]:
        """The batches of one epoch as example indices, in order."""
        rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        names = np.arange(len(self.examples)) if rng is None else _rename_equals(self.sizes, rng)
        batches = []
        for bucket, rows in zip(self.buckets, self._rows, strict=True):
            order = range(len(rows)) if rng is None else rng.permutation(len(rows)).tolist()
            named = [tuple(int(names[index]) for index in rows[number]) for number in order]
            batches += [
                PlannedBatch(bucket, tuple(named[start : start + bucket.rows]))
                for start in range(0, len(named), bucket.rows)
            ]
        return batches if rng is None else [batches[number] for number in rng.permutation(len(batches))]

    def build(self, planned: PlannedBatch) -> Batch:
        """The arrays of a planned batch."""
        rows = [[self.examples[index] for index in row] for row in planned.rows]
        rows += [[]] * (planned.bucket.rows - len(rows))
        return self.converter(rows, planned.bucket.lengths, packed=self.layout.packed)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """One pass over the examples."""
        return map(self.build, self.plan(epoch))

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Endless batches from `start_step` on; the batch of a step is the same wherever one starts.

        Raises:
          ValueError: for a negative step.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; expected 0 or more.")
        return self._endless(start_step)

    def _endless(self, start_step: int) -> Iterator[Batch]:
        epoch, step = divmod(start_step, self.steps_per_epoch)
        while True:
            yield from map(self.build, self.plan(epoch)[step:])
            epoch, step = epoch + 1, 0


def token_buckets(lengths: Sequence[Sequence[int]], tokens: int, multiple: int = 8) -> list[Bucket]:
    """Buckets whose batches hold about the same number of tokens, so that every step costs about the same.

    >>> token_buckets([(8, 8), (16, 16)], tokens=1024)
    [Bucket(lengths=(8, 8), rows=64), Bucket(lengths=(16, 16), rows=32)]

    Args:
      lengths: of each bucket, shortest first.
      tokens: per batch, padding and all axes included.
      multiple: rows are rounded down to a multiple of it, for sharding and vector units.

    Raises:
      ValueError: when not even `multiple` rows fit the budget.
    """
    buckets = [Bucket(tuple(each), tokens // sum(each) // multiple * multiple) for each in lengths]
    for bucket in buckets:
        if not bucket.rows:
            raise ValueError(
                f"a budget of {tokens} tokens holds fewer than {multiple} rows of lengths {bucket.lengths}; expected "
                f"at least {multiple * sum(bucket.lengths)} tokens. Raise the budget or lower `multiple`."
            )
    return buckets


def _rename_equals(sizes: Int[np.ndarray, "N A"], rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """A permutation that only exchanges examples of equal sizes, so that any plan stays valid under it."""
    slots = np.lexsort(sizes.T)
    shuffled = rng.permutation(len(sizes))
    names = np.empty_like(shuffled)
    names[slots] = shuffled[np.lexsort(sizes[shuffled].T)]  # lexsort is stable: equal sizes keep their shuffled order
    return names
