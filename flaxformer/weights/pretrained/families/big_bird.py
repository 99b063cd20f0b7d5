"""BigBird: BERT with attention between blocks.

Decision: outside training their implementation draws no blocks and takes the first one instead, as often as it would
draw; so do these models.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import bert
from flaxformer.weights.pretrained.family import Family, Gin
from flaxformer.weights.pretrained.rules import linear, table

_HEADS = {
    suffix: bert.HEADS[suffix]
    for suffix in ("ForPreTraining", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")
}


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/big_bird/parts.gin`."""
    common = bert.common(attributes, _HEADS, names, "bert.pooler")
    made = {
        **bert.sizes(attributes, "gelu_new"),
        **common,
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 50358),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 4096),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
        "BIASED": ("query", "key", "value", "out") if attributes.get("use_bias", True) else ("out",),
        "BLOCK_SIZE": attributes.get("block_size", 64),
        "RANDOM_BLOCKS": attributes.get("num_random_blocks", 3),
    }
    if attributes.get("rescale_embeddings", False):
        made["EMBEDDING_SCALE"] = made["EMBED_DIM"] ** 0.5
    if attributes.one_of("attention_type", "block_sparse", "original_full") == "original_full":
        made["ATTENTION"] = Gin("@dense_attention.MultiHeadDotProductAttention()")
    return made


RULES = table(
    bert.body("bert"),
    bert.masked_lm("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    linear("bert.pooler", "heads_pooled/dense"),
    linear("cls.seq_relationship", "heads_next_sentence/dense"),
    bert.DEEP,
    bert.TOKENS,
)
_UNUSED = (r".*\.embeddings\.(position_ids|token_type_ids)", r"cls\.predictions\.decoder\.(weight|bias)")

FAMILIES = (Family(("big_bird",), "big_bird/parts", settings, RULES, (), _UNUSED, "bert.", ("cls.", "classifier")),)
