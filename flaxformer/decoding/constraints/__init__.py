"""Constraints: what may be written, as functions on logits that work under every strategy. See `base`."""

from flaxformer.decoding.constraints.automaton import Automaton
from flaxformer.decoding.constraints.base import Constrained, Constraint
from flaxformer.decoding.constraints.lengths import ForcedEnd, MinLength
from flaxformer.decoding.constraints.repetition import NoRepeatNGram, RepetitionPenalty
from flaxformer.decoding.constraints.tokens import Banned, ForcedPrefix

__all__ = [
    "Automaton",
    "Banned",
    "Constrained",
    "Constraint",
    "ForcedEnd",
    "ForcedPrefix",
    "MinLength",
    "NoRepeatNGram",
    "RepetitionPenalty",
]
