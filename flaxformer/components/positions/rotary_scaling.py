"""Rotary positions beyond the length that a model was trained with: the speeds of its pairs are changed once.

A pair that turns by `r` radians per token makes `L * r / 2π` turns in a context of `L` tokens. What a scaling does
depends on that number:

| scaling             | pairs that turn often         | pairs that turn less than once |
|---------------------|-------------------------------|--------------------------------|
| `LinearScaling`     | slowed down by `factor`       | slowed down by `factor`        |
| `NtkScaling`        | nearly as they were           | slowed down, at most by `factor` |
| `YarnScaling`       | as they were                  | slowed down by `factor`        |
| `Llama3Scaling`     | as they were                  | slowed down by `factor`        |

The last two differ in how they blend what lies between; `YarnScaling` also sharpens the softmax.

Glossary:

* *frequencies*: `[R/2]` radians per token, one for each pair of the `R` rotated features, falling geometrically.
* *turns*: how often a pair turns in the original context.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Changes nothing; the base of all scalings."""

    def scale(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        """The frequencies to rotate with, float64."""
        return frequencies

    @property
    def magnitude(self) -> float:
        """What rotated queries and rotated keys are each multiplied by."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """Position interpolation: all pairs turn `factor` times slower, as if positions were divided by it.

    Attributes:
      factor: new length over original length.

    >>> LinearScaling(4.0).scale(np.array([1.0, 0.1]))
    array([0.25 , 0.025])

    Source: Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation",
    https://arxiv.org/abs/2306.15595
    """

    factor: float

    def scale(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NtkScaling(RotaryScaling):
    """A larger base: pair `j` of `n` turns `factor ** (j / (n - 1))` times slower, the fastest not at all.

    Attributes:
      factor: new length over original length.

    >>> NtkScaling(4.0).scale(np.array([1.0, 0.1, 0.01]))
    array([1.    , 0.05  , 0.0025])

    Source: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", definition 1,
    https://arxiv.org/abs/2309.00071
    """

    factor: float

    def scale(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        pairs = len(frequencies)
        return frequencies * self.factor ** (-np.arange(pairs) / max(pairs - 1, 1))


@dataclasses.dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """NTK by parts, with attention made sharper: many turns stay, few are slowed down, a ramp over pairs between.

    Attributes:
      factor: new length over original length.
      original_length: tokens of context before scaling.
      fast_turns: pairs with at least so many turns keep their speed (β of the paper).
      slow_turns: pairs with at most so many turns are slowed down by `factor` (α).
      attention_factor: what rotated queries and keys are each multiplied by, so that scores are by its square.
        None: `0.1 ln(factor) + 1`, the paper's square root of 1 / temperature.
      whole_pairs: the ramp starts and ends at whole pairs, as in published models.

    Source: Peng et al. 2023, sections 3.2 to 3.4, https://arxiv.org/abs/2309.00071. There the ramp is linear in the
    number of turns; here it is linear in the number of the pair, as in the code and the models that followed it.
    """

    factor: float
    original_length: int
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    attention_factor: float | None = None
    whole_pairs: bool = True

    def scale(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        first, last = (self._pair_with(turns, frequencies) for turns in (self.fast_turns, self.slow_turns))
        if self.whole_pairs:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(frequencies) - 1)
        slowed = np.clip((np.arange(len(frequencies)) - first) / (last - first or 1e-3), 0, 1)
        return frequencies / self.factor * slowed + frequencies * (1 - slowed)

    @property
    def magnitude(self) -> float:
        return yarn_magnitude(self.factor) if self.attention_factor is None else self.attention_factor

    def _pair_with(self, turns: float, frequencies: Float[np.ndarray, " half"]) -> float:
        """The number of the pair that would turn so often, not rounded."""
        if len(frequencies) < 2:
            raise ValueError(
                f"YarnScaling got {len(frequencies)} pair of features to rotate; expected at least 2, between which "
                "it can blend. Rotate more features, or use LinearScaling."
            )
        per_pair = math.log(frequencies[0] / frequencies[-1]) / (len(frequencies) - 1)
        return math.log(self.original_length * frequencies[0] / (2 * math.pi * turns)) / per_pair


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Many turns stay, few are slowed down, and the speeds between are blended by the number of turns.

    Attributes:
      factor: by how much slow pairs are slowed down.
      low_turns: pairs with fewer turns are slowed down (`low_freq_factor` of published configurations).
      high_turns: pairs with more turns keep their speed (`high_freq_factor`).
      original_length: tokens of context before scaling.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", https://arxiv.org/abs/2407.21783, as released with
    Llama 3.1.
    """

    factor: float = 8.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    original_length: int = 8192

    def scale(self, frequencies: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        turns = self.original_length * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low_turns) / (self.high_turns - self.low_turns), 0, 1)
        return frequencies / self.factor * (1 - kept) + frequencies * kept


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """`0.1 * weight * ln(factor) + 1`, and 1 for factors that do not lengthen.

    >>> round(yarn_magnitude(16.0), 4), yarn_magnitude(0.5)
    (1.2773, 1.0)
    """
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
