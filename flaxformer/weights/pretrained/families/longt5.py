"""LongT5 with local attention; what is as in T5 stands there.

Decision: as for type `t5`, the head is one of its own where the file has one, and what it reads is scaled where
`scale_decoder_outputs` says so, or in files that lack it `tie_word_embeddings`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import t5
from flaxformer.weights.pretrained.family import Family
from flaxformer.weights.pretrained.files import Weights
from flaxformer.weights.pretrained.rules import Rule


def settings(attributes: Attributes, weights: Weights) -> dict[str, Any]:
    """Bindings of `gin/longt5/parts.gin`."""
    attributes.one_of("encoder_attention_type", "local")
    attributes.without_effect("global_block_size")
    return {**t5.settings(attributes, weights), "LOCAL_RADIUS": attributes.get("local_radius", 127)}


def _local(rule: Rule) -> Rule:
    """A rule of T5, for the name that the encoder's attention has here."""
    if not rule.theirs.startswith("encoder."):
        return rule
    return dataclasses.replace(rule, theirs=rule.theirs.replace(".SelfAttention.", ".LocalSelfAttention."))


RULES = tuple(map(_local, t5.RULES))

FAMILIES = (Family(("longt5",), "longt5/parts", settings, RULES, unused=t5.UNUSED, shares_bias=True),)
