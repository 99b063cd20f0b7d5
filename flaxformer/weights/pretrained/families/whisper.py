"""Whisper.

Decisions: spectrograms are `[batch, frames, channels]` here and `[batch, channels, frames]` there. `scale_embedding`
has no effect, as in every release of transformers. The encoder's sinusoids are a parameter, since files keep them, and
are computed where one leaves them out. Which languages, tasks and time stamps a prompt asks for is the caller's to say,
in the prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from flaxformer.components import initializers
from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.family import Family, check_architecture, without_logits
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table

_TRAINING = (
    "apply_spec_augment", "decoder_layerdrop", "encoder_layerdrop", "mask_feature_length", "mask_feature_min_masks",
    "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob",
)  # fmt: skip
_ELSEWHERE = (  # of audio classifiers, time stamps and generation; and two without effect
    "alignment_heads", "classifier_proj_size", "forced_decoder_ids", "is_decoder", "median_filter_width",
    "num_hidden_layers", "scale_embedding", "use_weighted_layer_sum",
)  # fmt: skip


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/whisper/parts.gin`."""
    check_architecture(attributes, "ForConditionalGeneration", "Model")
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect(*_TRAINING, *_ELSEWHERE)
    return {
        **without_logits(attributes),
        "NUM_ENCODER_LAYERS": attributes.get("encoder_layers", 4),
        "NUM_DECODER_LAYERS": attributes.get("decoder_layers", 4),
        "NUM_ENCODER_HEADS": attributes.get("encoder_attention_heads", 6),
        "NUM_DECODER_HEADS": attributes.get("decoder_attention_heads", 6),
        "EMBED_DIM": attributes.get("d_model", 384),
        "ENCODER_MLP_DIM": attributes.get("encoder_ffn_dim", 1536),
        "DECODER_MLP_DIM": attributes.get("decoder_ffn_dim", 1536),
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 51865),
        "NUM_ENCODER_POSITIONS": attributes.get("max_source_positions", 1500),
        "NUM_CHANNELS": attributes.get("num_mel_bins", 80),
        "NUM_DECODER_POSITIONS": attributes.get("max_target_positions", 448),
        "ACTIVATION": activation(attributes, "activation_function", "gelu"),
        "DROPOUT_RATE": attributes.get("dropout", 0.0),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
        "MLP_DROPOUT_RATE": attributes.get("activation_dropout", 0.0),
    }


def _layer(stack: str, own: str) -> tuple[Rule, ...]:
    theirs, ours = f"model.{stack}.layers.{{i}}", f"{stack}/layers_{{i}}"
    return table(
        attention(f"{theirs}.self_attn", f"{ours}/{own}"),
        norm(f"{theirs}.self_attn_layer_norm", f"{ours}/pre_{own}_layer_norm"),
        linear(f"{theirs}.fc1", f"{ours}/mlp/wi"),
        linear(f"{theirs}.fc2", f"{ours}/mlp/wo"),
        norm(f"{theirs}.final_layer_norm", f"{ours}/pre_mlp_layer_norm"),
        norm(f"model.{stack}.layer_norm", f"{stack}/{stack}_norm"),
    )


def _sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(initializers.sinusoidal()(None, shape, np.float32))  # pyright: ignore


_EMBEDDER = "encoder/token_embedder"
_CROSS = "model.decoder.layers.{i}.encoder_attn"

RULES = table(
    linear("model.encoder.conv1", f"{_EMBEDDER}/convolution_0"),
    linear("model.encoder.conv2", f"{_EMBEDDER}/convolution_1"),
    Rule("model.encoder.embed_positions.weight", f"{_EMBEDDER}/positions", absent=_sinusoids),
    _layer("encoder", "attention"),
    Rule("model.decoder.embed_tokens.weight", "decoder/token_embedder/embedding"),
    Rule("model.decoder.embed_positions.weight", "decoder/position_embedder/pos_embedding"),
    _layer("decoder", "self_attention"),
    attention(_CROSS, "decoder/layers_{i}/encoder_decoder_attention"),
    norm(f"{_CROSS}_layer_norm", "decoder/layers_{i}/pre_cross_attention_layer_norm"),
)

_UNUSED = (r"proj_out\.weight",)  # a copy of the token table

FAMILIES = (Family(("whisper",), "whisper/parts", settings, RULES, (), _UNUSED, "model.", ("proj_out",)),)
