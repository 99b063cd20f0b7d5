"""CLIP, both towers.

Decisions: a text ends at its largest id where `eos_token_id` of the text is 2, as in most released files, whose 2 is a
mistake; else at the first token of that id. The width of the projection is the outer `projection_dim`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.families.vit import pair
from flaxformer.weights.pretrained.family import Family, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Patches, Transposed

_OLD_END = 2


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/clip/parts.gin`."""
    check_architecture(attributes, "CLIPModel")
    attributes.without_effect("logit_scale_init_value", "text_config_dict", "vision_config_dict")
    text, image = attributes.part("text_config"), attributes.part("vision_config")
    for tower in (text, image):
        tower.without_effect("projection_dim", "dropout")
    image.without_effect("num_channels")
    end = text.get("eos_token_id", 49407)
    size, patch = pair(image.get("image_size", 224)), pair(image.get("patch_size", 32))
    return {
        **_tower(text, "TEXT", (512, 2048, 8)),
        **_tower(image, "IMAGE", (768, 3072, 12)),
        "NUM_EMBEDDINGS": text.get("vocab_size", 49408),
        "NUM_POSITIONS": text.get("max_position_embeddings", 77),
        "END_ID": None if end == _OLD_END else end,
        "PATCH": patch,
        "GRID": tuple(whole // part for whole, part in zip(size, patch, strict=True)),
        "PROJECTION_DIM": attributes.get("projection_dim", 512),
    }


def _tower(attributes: Attributes, name: str, defaults: tuple[int, int, int]) -> dict[str, Any]:
    width, mlp_width, heads = defaults
    return {
        f"NUM_{name}_LAYERS": attributes.get("num_hidden_layers", 12),
        f"NUM_{name}_HEADS": attributes.get("num_attention_heads", heads),
        f"{name}_DIM": attributes.get("hidden_size", width),
        f"{name}_MLP_DIM": attributes.get("intermediate_size", mlp_width),
        f"{name}_ACTIVATION": activation(attributes, "hidden_act", "quick_gelu"),
        f"{name}_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-5),
        f"{name}_ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
    }


def example(attributes: Attributes) -> dict[str, Any]:
    """What the model may be called with."""
    image = attributes.part("vision_config")
    height, width = pair(image.get("image_size", 224))
    images = np.zeros((1, height, width, image.get("num_channels", 3)), np.float32)
    return {"tokens": np.ones((1, 4), np.int32), "images": images}


def _layers(theirs: str, ours: str) -> tuple[Rule, ...]:
    layer, own = f"{theirs}.encoder.layers.{{i}}", f"{ours}/encoder/layers_{{i}}"
    return table(
        attention(f"{layer}.self_attn", f"{own}/attention"),
        norm(f"{layer}.layer_norm1", f"{own}/pre_attention_layer_norm"),
        linear(f"{layer}.mlp.fc1", f"{own}/mlp/wi"),
        linear(f"{layer}.mlp.fc2", f"{own}/mlp/wo"),
        norm(f"{layer}.layer_norm2", f"{own}/pre_mlp_layer_norm"),
    )


RULES = table(
    Rule("logit_scale", "logit_scale"),
    Rule("text_projection.weight", "text_projection/kernel", Transposed()),
    Rule("visual_projection.weight", "image_projection/kernel", Transposed()),
    Rule("text_model.embeddings.token_embedding.weight", "text/encoder/token_embedder/embedding"),
    Rule("text_model.embeddings.position_embedding.weight", "text/encoder/position_embedder/pos_embedding"),
    _layers("text_model", "text"),
    norm("text_model.final_layer_norm", "text/encoder/encoder_norm"),
    Rule("vision_model.embeddings.class_embedding", "image/encoder/token_embedder/first"),
    Rule("vision_model.embeddings.position_embedding.weight", "image/encoder/token_embedder/positions"),
    norm("vision_model.pre_layrnorm", "image/encoder/embedding_transform"),
    _layers("vision_model", "image"),
    norm("vision_model.post_layernorm", "image/heads_pooled/layer_norm"),
)


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """The kernel of the patches depends on their size."""
    patch = pair(attributes.part("vision_config").get("patch_size", 32))
    kernel = Rule(
        "vision_model.embeddings.patch_embedding.weight", "image/encoder/token_embedder/patches/kernel", Patches(*patch)
    )
    return (*RULES, kernel)


_UNUSED = (r"(text|vision)_model\.embeddings\.position_ids",)

FAMILIES = (Family(("clip",), "clip/parts", settings, rules, unused=_UNUSED, example=example),)
