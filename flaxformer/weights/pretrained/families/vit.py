"""ViT, for classification or headless with its pooler.

Decision: images are `[batch, height, width, channels]` here and `[batch, channels, height, width]` there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Patches, Row, Rows


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, from one number for both or from a list."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/vit/parts.gin`."""
    check_architecture(attributes, "ForImageClassification", "Model")
    attributes.without_effect("encoder_stride")
    image, patch = pair(attributes.get("image_size", 224)), pair(attributes.get("patch_size", 16))
    width = attributes.get("hidden_size", 768)
    heads = "CLASS_HEADS" if "classifier.weight" in names else "NO_HEADS"
    labels = attributes.get("id2label", {})
    return {
        "HEADS": Gin("%POOLED_HEADS" if "vit.pooler.dense.weight" in names else f"%{heads}"),
        "NUM_CLASSES": attributes.get("num_labels", len(labels) or 2),
        "NUM_LAYERS": attributes.get("num_hidden_layers", 12),
        "NUM_HEADS": attributes.get("num_attention_heads", 12),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("intermediate_size", 3072),
        "PATCH": patch,
        "GRID": tuple(size // part for size, part in zip(image, patch, strict=True)),
        "NUM_CHANNELS": attributes.get("num_channels", 3),
        "ACTIVATION": activation(attributes, "hidden_act", "gelu"),
        "BIASED": ("query", "key", "value", "out") if attributes.get("qkv_bias", True) else ("out",),
        "POOLER_ACTIVATION": activation(attributes, "pooler_act", "tanh"),
        "POOLER_DIM": attributes.get("pooler_output_size", width),
        "DROPOUT_RATE": attributes.get("hidden_dropout_prob", 0.0),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_probs_dropout_prob", 0.0),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
    }


_THEIRS, _OURS = "vit.encoder.layer.{i}", "encoder/layers_{i}"
_EMBEDDER = "encoder/token_embedder"
_QKV = ("query", "key", "value")

RULES = table(
    Rule("vit.embeddings.cls_token", f"{_EMBEDDER}/first", Rows(2)),
    Rule("vit.embeddings.position_embeddings", f"{_EMBEDDER}/positions", Row()),
    Rule("vit.embeddings.patch_embeddings.projection.bias", f"{_EMBEDDER}/patches/bias"),
    *(linear(f"{_THEIRS}.attention.attention.{part}", f"{_OURS}/attention/{part}") for part in _QKV),
    linear(f"{_THEIRS}.attention.output.dense", f"{_OURS}/attention/out"),
    norm(f"{_THEIRS}.layernorm_before", f"{_OURS}/pre_attention_layer_norm"),
    linear(f"{_THEIRS}.intermediate.dense", f"{_OURS}/mlp/wi"),
    linear(f"{_THEIRS}.output.dense", f"{_OURS}/mlp/wo"),
    norm(f"{_THEIRS}.layernorm_after", f"{_OURS}/pre_mlp_layer_norm"),
    norm("vit.layernorm", "encoder/encoder_norm"),
    linear("vit.pooler.dense", "heads_pooled/dense"),
    linear("classifier", "heads_labels/dense"),
)


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """The kernel of the patches depends on their size."""
    patch = pair(attributes.get("patch_size", 16))
    kernel = Rule("vit.embeddings.patch_embeddings.projection.weight", f"{_EMBEDDER}/patches/kernel", Patches(*patch))
    return (*RULES, kernel)


FAMILIES = (Family(("vit",), "vit/parts", settings, rules, unused=(), prefix="vit.", heads=("classifier",)),)
