"""Where batches come from.

Training data is a source with `batches(start_step)`, an iterator whose batch for a step depends on nothing but the step
(and the source's own seed): see `flaxformer.data`. That is what lets an interrupted run go on exactly. A list of
batches works too, and is repeated. Evaluation data is a source with `epoch()`, a source with `batches`, or a list.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from flaxformer.training.batches import Batch

Source = Any


def training_batches(source: Source, start_step: int = 0) -> Iterator[Batch]:
    """The batches of `source` from `start_step` on.

    Raises:
      ValueError: for an iterator, which could not go on where an interrupted run stopped, and for an empty list.

    >>> list(itertools.islice(training_batches([{"a": 1}, {"a": 2}], start_step=3), 2))
    [{'a': 2}, {'a': 1}]
    """
    if hasattr(source, "batches"):
        return iter(source.batches(start_step))
    if isinstance(source, Sequence) and source:
        return itertools.islice(itertools.cycle(source), start_step % len(source), None)
    raise ValueError(
        f"the training data is {_describe(source)}; expected a source with a method batches(start_step), or a list of "
        "batches. See flaxformer.data for sources that can go on at any step."
    )


def evaluation_batches(source: Source, batches: int | None = None) -> Iterator[Batch]:
    """The batches of one evaluation, the same each time.

    Args:
      source: see above.
      batches: at most this many; all when None, which a source without an end does not allow.

    Raises:
      ValueError: for what has no end or cannot be read again.
    """
    if hasattr(source, "epoch"):
        found = source.epoch()
    elif hasattr(source, "batches") and batches is not None:
        found = source.batches(0)
    elif isinstance(source, Sequence) and source:
        found = source
    else:
        raise ValueError(
            f"the evaluation data is {_describe(source)} and eval_batches is {batches}; expected a source with "
            "a method epoch(), a list of batches, or a source with batches(start_step) and a number of eval_batches."
        )
    return itertools.islice(iter(found), batches)


def _describe(source: Any) -> str:
    return "empty" if isinstance(source, Sequence) else f"of type {type(source).__name__}"
