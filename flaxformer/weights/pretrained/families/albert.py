"""ALBERT: groups of layers that run several times. Its second task, the order of sentences, is `next_sentence` here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import bert
from flaxformer.weights.pretrained.family import Family
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/albert/parts.gin`."""
    attributes.without_effect("net_structure_type", "gap_size", "num_memory_blocks", "down_scale_factor")
    layers, groups, inner = _shape(attributes)
    order = [group * inner + i for group in (index * groups // layers for index in range(layers)) for i in range(inner)]
    dropout = attributes.get("hidden_dropout_prob", 0.0)
    return {
        **bert.sizes(attributes, "gelu_new"),
        **bert.common(attributes, bert.HEADS, names, "albert.pooler"),
        "NUM_LAYERS": groups * inner,
        "LAYER_ORDER": tuple(order),
        "NUM_HEADS": attributes.get("num_attention_heads", 64),
        "EMBED_DIM": attributes.get("hidden_size", 4096),
        "MLP_DIM": attributes.get("intermediate_size", 16384),
        "TOKEN_DIM": attributes.get("embedding_size", 128),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
        "DROPOUT_RATE": dropout,
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_probs_dropout_prob", 0.0),
        "CLASSIFIER_DROPOUT_RATE": attributes.get("classifier_dropout_prob", 0.1),
    }


def _shape(attributes: Attributes) -> tuple[int, int, int]:
    """How many layers run, how many groups there are, and how many layers each group has."""
    return (
        attributes.get("num_hidden_layers", 12),
        attributes.get("num_hidden_groups", 1),
        attributes.get("inner_group_num", 1),
    )


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """Layer L of group G is our layer G * inner_group_num + L."""
    _, groups, inner = _shape(attributes)
    layers = [_layer(group, layer, group * inner + layer) for group in range(groups) for layer in range(inner)]
    return table(
        bert.embeddings("albert", "encoder/embedding_transform/layers_0"),
        linear("albert.encoder.embedding_hidden_mapping_in", "encoder/embedding_transform/layers_1"),
        *layers,
        linear("albert.pooler", "heads_pooled/dense"),
        bert.masked_lm("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
        linear("sop_classifier.classifier", "heads_next_sentence/dense"),
        linear("classifier", "heads_labels/dense"),
        bert.TOKENS,
    )


def _layer(group: int, layer: int, index: int) -> tuple[Rule, ...]:
    theirs, ours = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{layer}", f"encoder/layers_{index}"
    names = {"query": "query", "key": "key", "value": "value", "dense": "out"}
    return table(
        *(linear(f"{theirs}.attention.{name}", f"{ours}/attention/{part}") for name, part in names.items()),
        norm(f"{theirs}.attention.LayerNorm", f"{ours}/pre_attention_layer_norm"),
        linear(f"{theirs}.ffn", f"{ours}/mlp/wi"),
        linear(f"{theirs}.ffn_output", f"{ours}/mlp/wo"),
        norm(f"{theirs}.full_layer_layer_norm", f"{ours}/pre_mlp_layer_norm"),
    )


_UNUSED = (
    r".*\.embeddings\.(position_ids|token_type_ids)",
    r"predictions\.decoder\.(weight|bias)",
    r"albert\.pooler\..*",
)
_HEAD_NAMES = ("predictions", "sop_classifier", "classifier", "qa_outputs")

FAMILIES = (Family(("albert",), "albert/parts", settings, rules, (), _UNUSED, "albert.", _HEAD_NAMES),)
