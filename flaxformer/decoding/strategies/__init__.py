"""Decoding strategies: how logits become tokens. See `base` for what a strategy is."""

from flaxformer.decoding.strategies.base import Generated, Request, Strategy
from flaxformer.decoding.strategies.beam import BeamSearch
from flaxformer.decoding.strategies.beam_rules import BrevityPenalty, LengthPenalty
from flaxformer.decoding.strategies.contrastive import Contrastive
from flaxformer.decoding.strategies.diverse import DiverseBeamSearch
from flaxformer.decoding.strategies.greedy import Greedy
from flaxformer.decoding.strategies.rows import RowStrategy
from flaxformer.decoding.strategies.sample import Sample

__all__ = [
    "BeamSearch",
    "BrevityPenalty",
    "Contrastive",
    "DiverseBeamSearch",
    "Generated",
    "Greedy",
    "LengthPenalty",
    "Request",
    "RowStrategy",
    "Sample",
    "Strategy",
]
