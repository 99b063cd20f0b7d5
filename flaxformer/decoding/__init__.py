"""Decoding: one loop, strategies as objects, models through one door.

| room            | knows                                              | does not know       |
|-----------------|----------------------------------------------------|---------------------|
| `loop`          | prefill, then one step per token                   | strategies, models  |
| `model_session` | how a model is prefilled and stepped, its caches   | strategies          |
| `strategies`    | how logits become tokens, and which row goes on    | models, caches      |
| `logits`        | argmax, top-k and masks that are fast on CPU       | all of the above    |

`t5x` has T5X's functions of the same kind, under T5X's names.
"""

from flaxformer.decoding.generation import generate
from flaxformer.decoding.strategies import BeamSearch, Generated, Greedy, Sample, Strategy

__all__ = ["BeamSearch", "Generated", "Greedy", "Sample", "Strategy", "generate"]
