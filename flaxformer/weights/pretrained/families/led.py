"""LED: BART whose encoder has Longformer's attention.

Decision: which tokens of the encoder are global says the call, or the `flag_tokens` of the model. Otherwise none are,
although summaries are usually made with the first one global: `model.clone(flag_tokens=First())`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import bart, longformer
from flaxformer.weights.pretrained.family import Family
from flaxformer.weights.pretrained.rules import Rule, linear, table


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/led/parts.gin`."""
    attributes.one_of("scale_embedding", False)
    attributes.without_effect("attention_probs_dropout_prob", "max_position_embeddings")
    common = bart.bart_settings(attributes, names)
    return {
        **common,
        **longformer.windows(attributes, common["NUM_ENCODER_LAYERS"]),
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 50265),
        "NUM_POSITIONS": attributes.get("max_encoder_position_embeddings", 16384),
        "NUM_DECODER_POSITIONS": attributes.get("max_decoder_position_embeddings", 1024),
    }


def _of_bart(rule: Rule) -> Rule:
    """A rule of BART for the names of LED."""
    body = rule.theirs.startswith("model.")
    return dataclasses.replace(rule, theirs="led." + rule.theirs.removeprefix("model.")) if body else rule


_SELF, _OURS = "led.encoder.layers.{i}.self_attn", "encoder/layers_{i}/attention"
RULES = table(
    [rule for rule in map(_of_bart, bart.rules()) if not rule.theirs.startswith(f"{_SELF}.")],
    longformer.projections(f"{_SELF}.longformer_self_attn", _OURS),
    linear(f"{_SELF}.output", f"{_OURS}/out"),
)
_UNUSED = (r"led\.(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight")
_HEAD_NAMES = ("final_logits_bias", "lm_head")

FAMILIES = (Family(("led",), "led/parts", settings, RULES, (), _UNUSED, "led.", _HEAD_NAMES),)
