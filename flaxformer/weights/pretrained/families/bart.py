"""BART, mBART, Pegasus and Marian: one table, four wirings.

Decisions: a body alone gets the head that follows from its token table, since BART itself is published so. Pegasus'
positions are fixed sinusoids that its files keep, so they are parameters here too, and are computed where an older file
leaves them out. Marian's are never in a file and never parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flaxformer.components import initializers
from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Row


def _settings(attributes: Attributes, defaults: Mapping[str, Any], scaled: bool, padding: int) -> dict[str, Any]:
    """Bindings of `gin/bart/parts.gin` that the three name alike."""
    check_architecture(attributes, "ForConditionalGeneration", "MTModel", "Model")
    for name, value in defaults.items():
        attributes.one_of(name, value)
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect("classifier_dropout", "classif_dropout", "num_hidden_layers", "is_decoder", "save_step")
    attributes.without_effect("encoder_layerdrop", "decoder_layerdrop", "extra_pos_embeddings", "add_bias_logits")
    attributes.without_effect("force_bos_token_to_be_generated")
    width = attributes.get("d_model", 1024)
    return {
        "NUM_ENCODER_LAYERS": attributes.get("encoder_layers", 12),
        "NUM_DECODER_LAYERS": attributes.get("decoder_layers", 12),
        "NUM_ENCODER_HEADS": attributes.get("encoder_attention_heads", 16),
        "NUM_DECODER_HEADS": attributes.get("decoder_attention_heads", 16),
        "EMBED_DIM": width,
        "ENCODER_MLP_DIM": attributes.get("encoder_ffn_dim", 4096),
        "DECODER_MLP_DIM": attributes.get("decoder_ffn_dim", 4096),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 1024),
        "ACTIVATION": activation(attributes, "activation_function", "gelu"),
        "DROPOUT_RATE": attributes.get("dropout", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
        "MLP_DROPOUT_RATE": attributes.get("activation_dropout", 0.0),
        "PADDING_ID": attributes.get("pad_token_id", padding),
        "EMBEDDING_SCALE": width**0.5 if attributes.get("scale_embedding", scaled) else None,
    }


def bart_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/bart/parts.gin`."""
    return _settings(attributes, _NORMS | {"normalize_embedding": True}, False, 1)


def mbart_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/mbart/parts.gin`."""
    fixed = {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": True}
    return _settings(attributes, fixed | {"static_position_embeddings": False}, False, 1)


def pegasus_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/pegasus/parts.gin`."""
    fixed = {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": False}
    return _settings(attributes, fixed | {"static_position_embeddings": True}, False, 0)


def marian_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/marian/parts.gin`."""
    attributes.one_of("share_encoder_decoder_embeddings", True)
    vocabulary = attributes.need("vocab_size")
    attributes.one_of("decoder_vocab_size", vocabulary)
    fixed = {**_NORMS, "normalize_embedding": False, "static_position_embeddings": True}
    return _settings(attributes, fixed, False, vocabulary - 1)


_NORMS = {"normalize_before": False, "add_final_layer_norm": False, "static_position_embeddings": False}


def attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of one attention in the names of fairseq."""
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return table(*(linear(f"{theirs}.{key}", f"{ours}/{name}") for key, name in names.items()))


def _layer(theirs: str, ours: str, own: str) -> tuple[Rule, ...]:
    return table(
        attention(f"{theirs}.self_attn", f"{ours}/{own}"),
        norm(f"{theirs}.self_attn_layer_norm", f"{ours}/pre_{own}_layer_norm"),
        linear(f"{theirs}.fc1", f"{ours}/mlp/wi"),
        linear(f"{theirs}.fc2", f"{ours}/mlp/wo"),
        norm(f"{theirs}.final_layer_norm", f"{ours}/pre_mlp_layer_norm"),
    )


def _sines_before_cosines(shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(initializers.sinusoidal(reach_last=False)(None, shape, np.float32))  # pyright: ignore


def _stack(name: str, own: str, absent: Any) -> tuple[Rule, ...]:
    theirs = f"model.{name}"
    return table(
        Rule(f"{theirs}.embed_positions.weight", f"{name}/position_embedder/pos_embedding", absent=absent),
        norm(f"{theirs}.layernorm_embedding", f"{name}/embedding_transform"),
        norm(f"{theirs}.layer_norm", f"{name}/{name}_norm"),
        _layer(f"{theirs}.layers.{{i}}", f"{name}/layers_{{i}}", own),
    )


def rules(absent: Any = None) -> tuple[Rule, ...]:
    """The table; `absent` makes positions that a file leaves out."""
    cross = "decoder/layers_{i}"
    return table(
        Rule("model.shared.weight", "token_embedder/embedding"),
        Rule("final_logits_bias", "decoder/logits_dense/bias", Row(), absent=lambda shape: np.zeros(shape, np.float32)),
        _stack("encoder", "attention", absent),
        _stack("decoder", "self_attention", absent),
        attention("model.decoder.layers.{i}.encoder_attn", f"{cross}/encoder_decoder_attention"),
        norm("model.decoder.layers.{i}.encoder_attn_layer_norm", f"{cross}/pre_cross_attention_layer_norm"),
    )


# Copies of the token table.
_UNUSED = (r"model\.(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight")
_MARIAN_UNUSED = (*_UNUSED, r"model\.(encoder|decoder)\.embed_positions\.weight")


def _family(kind: str, settings: Any, made: tuple[Rule, ...], unused: tuple[str, ...]) -> Family:
    return Family((kind,), f"{kind}/parts", settings, made, (), unused, "model.", ("final_logits_bias", "lm_head"))


FAMILIES = (
    _family("bart", bart_settings, rules(), _UNUSED),
    _family("mbart", mbart_settings, rules(), _UNUSED),
    _family("pegasus", pegasus_settings, rules(_sines_before_cosines), _UNUSED),
    _family("marian", marian_settings, rules(), _MARIAN_UNUSED),
)
