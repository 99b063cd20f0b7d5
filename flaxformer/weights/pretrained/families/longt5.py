"""LongT5, with local attention or with globals too; what is as in T5 stands there.

Decision: as for type `t5`, the head is one of its own where the file has one, and what it reads is scaled where
`scale_decoder_outputs` says so, or in files that lack it `tie_word_embeddings`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import t5
from flaxformer.weights.pretrained.family import Family, Gin
from flaxformer.weights.pretrained.files import Weights
from flaxformer.weights.pretrained.rules import Rule
from flaxformer.weights.pretrained.transforms import Transposed


def settings(attributes: Attributes, weights: Weights) -> dict[str, Any]:
    """Bindings of `gin/longt5/parts.gin`."""
    common = {
        **t5.settings(attributes, weights),
        "LOCAL_RADIUS": attributes.get("local_radius", 127),
        "TOKENS_PER_BLOCK": attributes.get("global_block_size", 16),
    }
    if _KINDS[attributes.one_of("encoder_attention_type", "local", "transient-global")] == "LocalSelfAttention":
        return common
    biases = "relative_position_biases.RelativePositionBiases"
    sizes = {name: common[f"{biases}.{name}"] for name in ("num_buckets", "max_distance")}
    return {
        **common,
        "ENCODER_ATTENTION": Gin("%TRANSIENT_GLOBAL"),
        "ENCODER_BIASES": Gin("@transient_global.TokenAndGlobalBiases"),
        **{f"transient_global.TokenAndGlobalBiases.{name}": size for name, size in sizes.items()},
    }


_KINDS = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}
_BLOCK, _OURS = "encoder.block.{i}.layer.0.TransientGlobalSelfAttention", "encoder/layers_{i}/attention"
_BIAS = "encoder.block.0.layer.0.TransientGlobalSelfAttention.global_relative_attention_bias.weight"


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """Those of T5, for the name that the encoder's attention has here, and those of the globals."""
    name = _KINDS[attributes.get("encoder_attention_type", "local")]

    def renamed(rule: Rule) -> Rule:
        theirs = rule.theirs.replace(".SelfAttention.", f".{name}.")
        return dataclasses.replace(rule, theirs=theirs) if theirs.startswith("encoder.") else rule

    return (
        *map(renamed, t5.RULES),
        Rule(f"{_BLOCK}.global_input_layer_norm.weight", f"{_OURS}/T5LayerNorm_0/scale"),
        Rule(_BIAS, "encoder/relpos_bias/global_embedding", Transposed()),
    )


FAMILIES = (
    Family(
        ("longt5",),
        "longt5/parts",
        settings,
        rules,
        unused=t5.UNUSED,
        shares_bias=True,
        scanned_gin="longt5/scanned",
    ),
)
