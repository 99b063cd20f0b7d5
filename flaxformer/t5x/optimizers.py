"""`t5x.optimizers`: several optimizers for disjoint subsets of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax

from flaxformer.training import optimizers


@dataclasses.dataclass(frozen=True)
class MultiOptimizer:
    """Pairs of a selector and an optimizer: see `flaxformer.training.optimizers.partitioned`.

    Attributes:
      traversals_and_optimizers: a selector is what `partitioned` takes. Parameters in none are frozen.
    """

    traversals_and_optimizers: Sequence[tuple[optimizers.Selector, Any]]

    def __call__(self, learning_rate: Any = None, logical_axes: Any = None) -> optax.GradientTransformation:
        """The optimizer; `learning_rate` goes to each definition that takes one."""
        made = [(chosen, _made(part, learning_rate, logical_axes)) for chosen, part in self.traversals_and_optimizers]
        return optimizers.partitioned(made, logical_axes)


def _made(
    definition: Any, learning_rate: Any, logical_axes: Any
) -> optax.GradientTransformation | Callable[..., optax.GradientTransformation]:
    from flaxformer.t5x.adafactor import Adafactor

    if isinstance(definition, Adafactor | MultiOptimizer):
        return definition(learning_rate, logical_axes)
    return definition
