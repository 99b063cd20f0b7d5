"""wav2vec 2.0, with a head for CTC or headless; both arrangements of its norms.

Decisions: frames of padding are computed as published, so that even what means nothing can be compared. The vector of
masked frames is a parameter where the file holds one, since files are saved as they were. Layers are never skipped at
random (`layerdrop` is of training).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Rows, Transposed

_OF_TRAINING = (
    "apply_spec_augment", "codevector_dim", "contrastive_logits_temperature", "ctc_loss_reduction",
    "ctc_zero_infinity", "diversity_loss_weight", "feat_extract_dropout", "feat_quantizer_dropout",
    "hidden_dropout_prob", "layerdrop",
    "mask_channel_length", "mask_channel_min_space", "mask_channel_other", "mask_channel_prob",
    "mask_channel_selection", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length",
    "mask_time_min_masks", "mask_time_min_space", "mask_time_other", "mask_time_prob", "mask_time_selection",
    "num_codevector_groups", "num_codevectors_per_group", "num_negatives", "proj_codevector_dim",
)  # fmt: skip
_OF_OTHER_HEADS = (
    "adapter_kernel_size", "adapter_stride", "classifier_proj_size", "num_adapter_layers", "output_hidden_size",
    "tdnn_dilation", "tdnn_dim", "tdnn_kernel", "use_weighted_layer_sum", "xvector_output_dim",
)  # fmt: skip
_DIMS, _KERNELS, _STRIDES = (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_LAYER_NORM, _FEATURE_NORM = Gin("@layer_norm.LayerNorm"), Gin("@features/layer_norm.LayerNorm")


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/wav2vec2/parts.gin`."""
    check_architecture(attributes, "ForCTC", "Model")
    attributes.one_of("add_adapter", False)
    attributes.one_of("adapter_attn_dim", None)
    attributes.without_effect(*_OF_TRAINING, *_OF_OTHER_HEADS, "tie_word_embeddings")
    dims = tuple(attributes.get("conv_dim", _DIMS))
    attributes.one_of("num_feat_extract_layers", len(dims))
    stable = attributes.get("do_stable_layer_norm", False)
    normed = attributes.one_of("feat_extract_norm", "group", "layer") == "layer"
    return {
        "HEADS": Gin("%CTC_HEADS" if "lm_head.weight" in names else "%NO_HEADS"),
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 32),
        "NUM_LAYERS": attributes.get("num_hidden_layers", 12),
        "NUM_HEADS": attributes.get("num_attention_heads", 12),
        "EMBED_DIM": attributes.get("hidden_size", 768),
        "MLP_DIM": attributes.get("intermediate_size", 3072),
        "FEATURE_DIMS": dims,
        "FEATURE_KERNELS": tuple(attributes.get("conv_kernel", _KERNELS)),
        "FEATURE_STRIDES": tuple(attributes.get("conv_stride", _STRIDES)),
        "FEATURE_BIAS": attributes.get("conv_bias", False),
        "FEATURE_ACTIVATION": activation(attributes, "feat_extract_activation", "gelu"),
        "FIRST_FEATURE_NORM": _FEATURE_NORM if normed else Gin("@waveforms.TimeNorm"),
        "FEATURE_NORM": _FEATURE_NORM if normed else None,
        "POSITION_KERNEL": attributes.get("num_conv_pos_embeddings", 128),
        "POSITION_GROUPS": attributes.get("num_conv_pos_embedding_groups", 16),
        "MASKED": Gin("@waveforms.MaskedFrames") if "wav2vec2.masked_spec_embed" in names else None,
        "ACTIVATION": activation(attributes, "hidden_act", "gelu"),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-5),
        "RESIDUAL": Gin("@t5_architecture.PreNorm()" if stable else "@t5_architecture.PostNorm()"),
        "FIRST_NORM": None if stable else _LAYER_NORM,
        "FINAL_NORM": _LAYER_NORM if stable else None,
        "DROPOUT_RATE": attributes.get("hidden_dropout", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.1),
        "MLP_DROPOUT_RATE": attributes.get("activation_dropout", 0.1),
        "FEATURE_DROPOUT_RATE": attributes.get("feat_proj_dropout", 0.0),
        "HEAD_DROPOUT_RATE": attributes.get("final_dropout", 0.1),
    }


_THEIRS, _OURS = "wav2vec2.encoder.layers.{i}", "encoder/layers_{i}"
_FRONT = "wav2vec2.feature_extractor.conv_layers.{i}"
_POSITIONS, _EMBEDDER = "wav2vec2.encoder.pos_conv_embed.conv", "encoder/token_embedder/convolution"

RULES = table(
    linear(f"{_FRONT}.conv", "features/convolution_{i}"),  # kernels [out in width] are ours reversed
    norm(f"{_FRONT}.layer_norm", "features/norm_{i}"),
    norm("wav2vec2.feature_projection.layer_norm", "feature_norm"),
    linear("wav2vec2.feature_projection.projection", "projection"),
    Rule("wav2vec2.masked_spec_embed", "masked/embedding"),
    Rule(f"{_POSITIONS}.parametrizations.weight.original0", f"{_EMBEDDER}/scale", Rows(2)),
    Rule(f"{_POSITIONS}.parametrizations.weight.original1", f"{_EMBEDDER}/kernel", Transposed()),
    Rule(f"{_POSITIONS}.bias", f"{_EMBEDDER}/bias"),
    norm("wav2vec2.encoder.layer_norm", "encoder/embedding_transform"),
    norm("wav2vec2.encoder.layer_norm", "encoder/encoder_norm"),  # one of the two
    attention(f"{_THEIRS}.attention", f"{_OURS}/attention"),
    norm(f"{_THEIRS}.layer_norm", f"{_OURS}/pre_attention_layer_norm"),
    linear(f"{_THEIRS}.feed_forward.intermediate_dense", f"{_OURS}/mlp/wi"),
    linear(f"{_THEIRS}.feed_forward.output_dense", f"{_OURS}/mlp/wo"),
    norm(f"{_THEIRS}.final_layer_norm", f"{_OURS}/pre_mlp_layer_norm"),
    linear("lm_head", "heads_ctc/dense"),
)

_RENAMES = (
    (r"(.*pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(.*pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
)

FAMILIES = (Family(("wav2vec2",), "wav2vec2/parts", settings, RULES, _RENAMES, (), "wav2vec2.", ("lm_head",)),)
