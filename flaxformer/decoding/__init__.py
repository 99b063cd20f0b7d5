"""Decoding: one loop, strategies as objects, models through one door.

| room            | knows                                              | does not know       |
|-----------------|----------------------------------------------------|---------------------|
| `loop`          | prefill, then one step per token                   | strategies, models  |
| `speculative`   | the same with a draft: several tokens per step     | strategies, models  |
| `model_session` | how a model is prefilled and stepped, its caches   | strategies          |
| `strategies`    | how logits become tokens, and which row goes on    | models, caches      |
| `constraints`   | which tokens may come next                         | all of the above    |
| `logits`        | argmax, top-k and masks that are fast on CPU       | all of the above    |

`generate` returns results, `stream` yields them as they come, `score` rates given ones. `t5x` has T5X's functions of
the same kind, under T5X's names.
"""

from flaxformer.decoding.buckets import bucketed
from flaxformer.decoding.checks import NotFiniteError
from flaxformer.decoding.constraints import (
    Automaton,
    Banned,
    Constraint,
    ForcedEnd,
    ForcedPrefix,
    MinLength,
    NoRepeatNGram,
    RepetitionPenalty,
)
from flaxformer.decoding.drafts import Draft, DraftModel, PromptLookup
from flaxformer.decoding.generation import generate
from flaxformer.decoding.guidance import Guidance
from flaxformer.decoding.prefix import Prefix, prefill
from flaxformer.decoding.prepared_weights import prepare_weights
from flaxformer.decoding.scoring import Scores, score
from flaxformer.decoding.strategies import (
    BeamSearch,
    BrevityPenalty,
    Contrastive,
    DiverseBeamSearch,
    Generated,
    Greedy,
    LengthPenalty,
    Sample,
    Strategy,
)
from flaxformer.decoding.streaming import Piece, stream

__all__ = [
    "Automaton",
    "Banned",
    "BeamSearch",
    "BrevityPenalty",
    "Constraint",
    "Contrastive",
    "DiverseBeamSearch",
    "Draft",
    "DraftModel",
    "ForcedEnd",
    "ForcedPrefix",
    "Generated",
    "Greedy",
    "Guidance",
    "LengthPenalty",
    "MinLength",
    "NoRepeatNGram",
    "NotFiniteError",
    "Piece",
    "Prefix",
    "PromptLookup",
    "RepetitionPenalty",
    "Sample",
    "Scores",
    "Strategy",
    "bucketed",
    "generate",
    "prefill",
    "prepare_weights",
    "score",
    "stream",
]
