"""CLIP: both towers, or one of them.

Decisions: a text ends at its largest id where `eos_token_id` of the text is 2, as in most released files, whose 2 is a
mistake; else at the first token of that id. The width of the projection is the outer `projection_dim`, or a single
tower's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.families.vit import pair
from flaxformer.weights.pretrained.family import Family, Gin, architecture, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Patches, Transposed

_OLD_END = 2


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/clip/parts.gin`."""
    check_architecture(attributes, "CLIPModel")
    attributes.without_effect("logit_scale_init_value", "text_config_dict", "vision_config_dict")
    text, image = attributes.part("text_config"), attributes.part("vision_config")
    return {**_texts(text), **_images(image), "PROJECTION_DIM": attributes.get("projection_dim", 512)}


def text_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/clip/parts.gin` for the encoder of texts alone."""
    return {**_texts(attributes), **_alone(attributes, "TEXT", "text/heads.EncoderWithHeads")}


def image_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/clip/parts.gin` for the encoder of images alone."""
    return {**_images(attributes), **_alone(attributes, "IMAGE", "image/vision.ImageEncoder")}


def _alone(attributes: Attributes, name: str, encoder: str) -> dict[str, Any]:
    check_architecture(attributes, "Model", "ModelWithProjection")
    other = "IMAGE" if name == "TEXT" else "TEXT"
    unused = [f"NUM_{other}_LAYERS", f"NUM_{other}_HEADS", f"{other}_DIM", f"{other}_MLP_DIM"]
    made = {"ARCHITECTURE": Gin(f"@{encoder}()"), "PROJECTION_DIM": attributes.get("projection_dim", 512)}
    made |= dict.fromkeys([*unused, *(("PATCH", "GRID") if other == "IMAGE" else ())])
    projected = architecture(attributes, "").endswith("WithProjection")
    return {**made, f"{name}_HEADS": Gin(f"%PROJECTED_{name}_HEADS")} if projected else made


def _texts(attributes: Attributes) -> dict[str, Any]:
    end = attributes.get("eos_token_id", 49407)
    return {
        **_tower(attributes, "TEXT", (512, 2048, 8)),
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 49408),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 77),
        "END_ID": None if end == _OLD_END else end,
    }


def _images(attributes: Attributes) -> dict[str, Any]:
    size, patch = pair(attributes.get("image_size", 224)), pair(attributes.get("patch_size", 32))
    return {
        **_tower(attributes, "IMAGE", (768, 3072, 12)),
        "PATCH": patch,
        "GRID": tuple(whole // part for whole, part in zip(size, patch, strict=True)),
        "NUM_CHANNELS": attributes.get("num_channels", 3),
    }


def _tower(attributes: Attributes, name: str, defaults: tuple[int, int, int]) -> dict[str, Any]:
    attributes.without_effect("projection_dim", "dropout")
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


def _layers(theirs: str, ours: str) -> tuple[Rule, ...]:
    layer, own = f"{theirs}.encoder.layers.{{i}}", f"{ours}encoder/layers_{{i}}"
    return table(
        attention(f"{layer}.self_attn", f"{own}/attention"),
        norm(f"{layer}.layer_norm1", f"{own}/pre_attention_layer_norm"),
        linear(f"{layer}.mlp.fc1", f"{own}/mlp/wi"),
        linear(f"{layer}.mlp.fc2", f"{own}/mlp/wo"),
        norm(f"{layer}.layer_norm2", f"{own}/pre_mlp_layer_norm"),
    )


def _text_rules(ours: str, projection: str) -> tuple[Rule, ...]:
    """The encoder of texts, whose parameters begin with `ours`."""
    embeddings = "text_model.embeddings"
    return table(
        Rule(f"{embeddings}.token_embedding.weight", f"{ours}encoder/token_embedder/embedding"),
        Rule(f"{embeddings}.position_embedding.weight", f"{ours}encoder/position_embedder/pos_embedding"),
        _layers("text_model", ours),
        norm("text_model.final_layer_norm", f"{ours}encoder/encoder_norm"),
        Rule("text_projection.weight", f"{projection}/kernel", Transposed()),
    )


def _image_rules(attributes: Attributes, ours: str, projection: str) -> tuple[Rule, ...]:
    """The encoder of images; the kernel of the patches depends on their size."""
    patches = Patches(*pair(attributes.get("patch_size", 32)))
    embeddings, embedder = "vision_model.embeddings", f"{ours}encoder/token_embedder"
    return table(
        Rule(f"{embeddings}.class_embedding", f"{embedder}/first"),
        Rule(f"{embeddings}.position_embedding.weight", f"{embedder}/positions"),
        Rule(f"{embeddings}.patch_embedding.weight", f"{embedder}/patches/kernel", patches),
        norm("vision_model.pre_layrnorm", f"{ours}encoder/embedding_transform"),
        _layers("vision_model", ours),
        norm("vision_model.post_layernorm", f"{ours}heads_pooled/layer_norm"),
        Rule("visual_projection.weight", f"{projection}/kernel", Transposed()),
    )


def rules(attributes: Attributes) -> tuple[Rule, ...]:
    """The table of both towers."""
    return table(
        Rule("logit_scale", "logit_scale"),
        _text_rules("text/", "text_projection"),
        _image_rules(attributes.part("vision_config"), "image/", "image_projection"),
    )


def image_rules(attributes: Attributes) -> tuple[Rule, ...]:
    """The table of the encoder of images alone."""
    return _image_rules(attributes, "", _PROJECTION)


_PROJECTION = "heads_projected/projection"
_UNUSED = (r"(text|vision)_model\.embeddings\.position_ids",)

FAMILIES = (
    Family(("clip",), "clip/parts", settings, rules, unused=_UNUSED),
    Family(
        ("clip_text_model",),
        "clip/parts",
        text_settings,
        _text_rules("", _PROJECTION),
        unused=_UNUSED,
        prefix="text_model.",
        heads=("text_projection",),
    ),
    Family(
        ("clip_vision_model",),
        "clip/parts",
        image_settings,
        image_rules,
        unused=_UNUSED,
        prefix="vision_model.",
        heads=("visual_projection",),
    ),
)
