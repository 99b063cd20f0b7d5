"""DeBERTa v2 and v3, with or without the convolution beside the first layer.

Decisions: `legacy` says where the masked language model's head lies in the file (`cls.predictions`, or
`lm_predictions.lm_head`); it computes the same. Files of v3's pretraining hold heads that their configuration does not
name; these, and a table of absolute positions that is not used, are passed over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families import bert
from flaxformer.weights.pretrained.family import Family, Gin
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Transposed

_HEADS = {
    suffix: bert.HEADS[suffix]
    for suffix in (
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "Model",
    )
}


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/deberta/parts.gin`."""
    layers, width = attributes.get("num_hidden_layers", 24), attributes.get("hidden_size", 1536)
    heads, types = attributes.get("num_attention_heads", 24), attributes.get("type_vocab_size", 0)
    attributes.one_of("embedding_size", width)
    dropout = attributes.get("hidden_dropout_prob", 0.1)
    # Their pooler is a part of classifiers only, and as wide as the model.
    attributes.one_of("pooler_hidden_size", width)
    attributes.without_effect("pooler_dropout")
    common = bert.common(attributes, _HEADS, names, "pooler.dense")
    of_tokens = common["HEADS"] in ("%TOKEN_HEADS", "%SPAN_HEADS")
    absolute = attributes.get("position_biased_input", True)
    return {
        **common,
        **_relative(attributes),
        **_convolution(attributes, layers),
        "NUM_LAYERS": layers,
        "NUM_HEADS": heads,
        "HEAD_DIM": attributes.get("attention_head_size", width // heads),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("intermediate_size", 6144),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512),
        "POSITION_EMBEDDER": Gin("@embedding.PositionEmbed") if absolute else None,
        "NUM_TOKEN_TYPES": types,
        "TOKEN_TYPE_EMBEDDER": Gin("@token_type/embedding.Embed") if types else None,
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 128100),
        "ACTIVATION": activation(attributes, "hidden_act", "gelu"),
        "POOLER_ACTIVATION": activation(attributes, "pooler_hidden_act", "gelu"),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-7),
        "DROPOUT_RATE": dropout,
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_probs_dropout_prob", 0.1),
        "CLASSIFIER_DROPOUT_RATE": dropout if of_tokens else attributes.get("cls_dropout", dropout),
    }


def _relative(attributes: Attributes) -> dict[str, Any]:
    """What the attention knows of distances."""
    if not attributes.get("relative_attention", False):
        attributes.one_of("pos_att_type", [], "none")  # others would change the scale of the scores
        attributes.without_effect("max_relative_positions", "position_buckets", "norm_rel_ebd", "share_att_key")
        return {
            "ENCODER": Gin("@t5_architecture.Encoder"),
            "ATTENTION": Gin("@dense_attention.MultiHeadDotProductAttention()"),
        }
    furthest, buckets = attributes.get("max_relative_positions", -1), attributes.get("position_buckets", -1)
    furthest = attributes.get("max_position_embeddings", 512) if furthest < 1 else furthest
    attributes.need("pos_att_type")
    terms = attributes.one_of("pos_att_type", *_TERMS)
    normed = attributes.one_of("norm_rel_ebd", "none", "layer_norm") == "layer_norm"
    return {
        "NUM_BUCKETS": buckets if buckets > 0 else furthest,
        "MAX_DISTANCE": furthest if buckets > 0 else None,
        "CONTENT_TO_POSITION": "c2p" in terms,
        "POSITION_TO_CONTENT": "p2c" in terms,
        "SHARE_PROJECTIONS": attributes.get("share_att_key", False),
        "DISTANCE_NORM": Gin("@layer_norm.LayerNorm()") if normed else None,
    }


# Older files write them as one string.
_TERMS = (["p2c", "c2p"], ["c2p", "p2c"], ["c2p"], ["p2c"], "p2c|c2p", "c2p|p2c", "c2p", "p2c")


def _convolution(attributes: Attributes, layers: int) -> dict[str, Any]:
    size = attributes.get("conv_kernel_size", 0)
    if size < 1:
        attributes.without_effect("conv_act", "conv_groups")
        return {}
    kinds = ["@disentangled.ConvolvedEncoderLayer", *["@t5_architecture.EncoderLayer"] * (layers - 1)]
    return {
        "LAYERS": Gin(f"({', '.join(kinds)},)"),
        "CONVOLUTION_SIZE": size,
        "CONVOLUTION_PADDING": ((size - 1) // 2, (size - 1) // 2),
        "CONVOLUTION_GROUPS": attributes.get("conv_groups", 1),
        "CONVOLUTION_ACTIVATION": activation(attributes, "conv_act", "tanh"),
    }


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """The table; where the head lies depends on `legacy`."""
    head = "cls.predictions"
    if attributes.get("legacy", True):
        masked_lm = bert.masked_lm(f"{head}.transform.dense", f"{head}.transform.LayerNorm", f"{head}.bias")
    else:
        head = "lm_predictions.lm_head"
        masked_lm = bert.masked_lm(f"{head}.dense", f"{head}.LayerNorm", f"{head}.bias")
    layer, ours = "deberta.encoder.layer.{i}", "encoder/layers_{i}"
    projections = {
        "query_proj": "query",
        "key_proj": "key",
        "value_proj": "value",
        "pos_key_proj": "position_key",
        "pos_query_proj": "position_query",
    }
    return table(
        bert.embeddings("deberta", "encoder/embedding_transform"),
        Rule("deberta.encoder.rel_embeddings.weight", "encoder/distances/rel_embeddings"),
        norm("deberta.encoder.LayerNorm", "encoder/distances/norm"),
        Rule("deberta.encoder.conv.conv.weight", "encoder/layers_0/convolution/kernel", Transposed()),
        Rule("deberta.encoder.conv.conv.bias", "encoder/layers_0/convolution/bias"),
        norm("deberta.encoder.conv.LayerNorm", "encoder/layers_0/convolution_norm"),
        *(linear(f"{layer}.attention.self.{name}", f"{ours}/attention/{part}") for name, part in projections.items()),
        linear(f"{layer}.attention.output.dense", f"{ours}/attention/out"),
        norm(f"{layer}.attention.output.LayerNorm", f"{ours}/pre_attention_layer_norm"),
        linear(f"{layer}.intermediate.dense", f"{ours}/mlp/wi"),
        linear(f"{layer}.output.dense", f"{ours}/mlp/wo"),
        norm(f"{layer}.output.LayerNorm", f"{ours}/pre_mlp_layer_norm"),
        masked_lm,
        linear("pooler.dense", "heads_pooled/dense"),
        linear("classifier", "heads_labels/dense"),
        bert.TOKENS,
    )


_RENAMES = ((r"(.*LayerNorm\.)gamma", r"\1weight"), (r"(.*LayerNorm\.)beta", r"\1bias"))
_UNUSED = (
    r"deberta\.embeddings\.(position_ids|position_embeddings\.weight)",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"lm_predictions\..*",
    r"mask_predictions\..*",
)
_HEAD_NAMES = ("cls.", "lm_predictions", "mask_predictions", "pooler", "classifier", "qa_outputs")

FAMILIES = (Family(("deberta-v2",), "deberta/parts", settings, rules, _RENAMES, _UNUSED, "deberta.", _HEAD_NAMES),)
