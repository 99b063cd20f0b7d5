"""`t5x.trainer`: what a run file binds of it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How steps are made.

    Attributes:
      learning_rate_fn: step -> learning rate.
      num_microbatches: a step in parts saves memory in T5X; here a batch is always computed at once.
      weight_metrics_computer: unused.
    """

    learning_rate_fn: Any = None
    num_microbatches: int | None = None
    weight_metrics_computer: Any = None
