"""Learning rates: T5X's product of factors, and three schedules by name.

Every schedule is a callable `step -> float32 scalar`, as optax takes them. In the formulas `s` is the step, `w` the
number of warm-up steps and `b` the base learning rate.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from flaxformer.types import Array

Schedule = Callable[[Any], Any]  # step -> float32 scalar, as `optax.Schedule`


def create_learning_rate_scheduler(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Schedule:
    """A product of factors, written as `'constant * linear_warmup * rsqrt_decay'`.

    | factor                   | multiplies by                                                                    |
    |--------------------------|----------------------------------------------------------------------------------|
    | `constant`               | `b`                                                                              |
    | `linear_warmup`          | `min(1, s/w)`                                                                    |
    | `linear_decay`           | `b · min(s/w, 1 + decay_factor·(w - s))`                                         |
    | `rsqrt_decay`            | `1 / √max(s, w)`                                                                 |
    | `rsqrt_normalized_decay` | `√w / √max(s, w)`                                                                |
    | `decay_every`            | `decay_factor ^ ⌊s / steps_per_decay⌋`                                           |
    | `cosine_decay`           | `max(0, ½(1 + cos(π·(q mod 1))))`, `q = max(0, (s - w) / steps_per_cycle)`       |

    Args:
      factors: names joined by `*`.
      base_learning_rate: `b`.
      warmup_steps: `w`.
      decay_factor: see the table.
      steps_per_decay: see the table.
      steps_per_cycle: steps after which the cosine starts again from the top.
      step_offset: subtracted from the step first; the difference is at least 0.
      min_learning_rate: the product is at least this.

    Returns:
      step -> learning rate.

    Raises:
      ValueError: for an unknown factor.

    >>> float(create_learning_rate_scheduler("constant * linear_warmup", 1.0, warmup_steps=10)(5))
    0.5
    """
    b, w = base_learning_rate, warmup_steps
    known: dict[str, Callable[[Array], Array | float]] = {
        "constant": lambda s: b,
        "linear_warmup": lambda s: jnp.minimum(1.0, s / w) if w else 1.0,
        "linear_decay": lambda s: b * jnp.minimum(s / w, 1.0 + decay_factor * (w - s)),
        "rsqrt_decay": lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, w or 1)),
        "rsqrt_normalized_decay": lambda s: jnp.sqrt(float(w)) / jnp.sqrt(jnp.maximum(s, w)),
        "decay_every": lambda s: decay_factor ** (s // steps_per_decay),
        "cosine_decay": lambda s: _half_cosine((jnp.maximum(0.0, (s - w) / steps_per_cycle)) % 1.0),
    }
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in known:
            raise ValueError(f"factors names {name!r}; expected one of {', '.join(known)}. Correct {factors!r}.")

    def schedule(step: Array | int) -> Array:
        s = jnp.maximum(0.0, jnp.asarray(step, jnp.float32) - step_offset)
        rate = math.prod((known[name](s) for name in names), start=jnp.float32(1.0))
        return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

    return schedule


def _half_cosine(progress: Array) -> Array:
    return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def rsqrt_with_warmup(peak: float, warmup_steps: int) -> Schedule:
    """Linear to `peak` over the warm-up, then `peak · √(w / s)`.

    >>> [round(float(rsqrt_with_warmup(1.0, 4)(s)), 3) for s in (2, 4, 16)]
    [0.5, 1.0, 0.5]
    """
    return create_learning_rate_scheduler(
        "constant * linear_warmup * rsqrt_normalized_decay", peak, _positive("warmup_steps", warmup_steps)
    )


def noam(width: int, warmup_steps: int = 4000, scale: float = 1.0) -> Schedule:
    """`scale · D^-½ · min(s^-½, s · w^-1.5)`: `rsqrt_with_warmup` with the peak set by the model's width `D`.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3.
    """
    peak = scale / math.sqrt(_positive("width", width) * _positive("warmup_steps", warmup_steps))
    return rsqrt_with_warmup(peak, warmup_steps)


def cosine_with_warmup(peak: float, warmup_steps: int, steps: int, end: float = 0.0) -> Schedule:
    """Linear to `peak` over the warm-up, then half a cosine to `end` at step `steps`, where it stays.

    >>> [round(float(cosine_with_warmup(1.0, 10, 110)(s)), 3) for s in (5, 10, 60, 110, 200)]
    [0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if steps <= warmup_steps:
        raise ValueError(f"steps is {steps}; expected more than warmup_steps, {warmup_steps}. Shorten the warm-up.")
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end)
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1. Use a constant rate for no warm-up.")
    return value
