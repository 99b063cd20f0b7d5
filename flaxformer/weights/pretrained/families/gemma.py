"""Gemma, Gemma 2 and the text decoder of Gemma 3: Llama's table, with more norms.

Decision: `hidden_act` "gelu" of the first Gemma files means the approximation by tanh, which the models were trained
with; `hidden_activation`, where there, says so and wins. `attn_logit_softcapping` has no effect in Gemma 3, as in every
release of transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families import llama
from flaxformer.weights.pretrained.family import Family, check_architecture, without_logits
from flaxformer.weights.pretrained.rope import FULL, SLIDING, kinds_of, layers, rotary, rotary_macros
from flaxformer.weights.pretrained.rules import norm

_SANDWICH = "arrangements.SandwichDecoderLayer"


def _common(attributes: Attributes) -> dict[str, Any]:
    check_architecture(attributes, "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "Model")
    attributes.one_of("tie_word_embeddings", True)
    attributes.one_of("use_bidirectional_attention", False)
    sizes = llama.sizes(attributes)
    return {
        **sizes,
        **without_logits(attributes),
        **llama.classes(attributes),
        "HEAD_DIM": attributes.get("head_dim", 256),
        "EMBEDDING_SCALE": sizes["EMBED_DIM"] ** 0.5,
        "ACTIVATIONS": (gate(attributes), "linear"),
        "BIASED": ("query", "key", "value", "out") if attributes.get("attention_bias", False) else (),
    }


def gate(attributes: Attributes) -> str:
    """Our name of the gate's activation."""
    old = attributes.get("hidden_act", "gelu_pytorch_tanh")
    if attributes.get("hidden_activation") is None and old != "gelu":
        return activation(attributes, "hidden_act", "gelu_pytorch_tanh")
    return activation(attributes, "hidden_activation", "gelu_pytorch_tanh")


def gemma_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gemma/parts.gin`."""
    return {**_common(attributes), **rotary(attributes)}


def bounded(attributes: Attributes, scores: float, scores_cap: float | None, cap: float | None) -> dict[str, Any]:
    """Scale and bounds of scores and logits; the numbers are those of files that name none."""
    return {
        "SCORES_SCALE": attributes.get("query_pre_attn_scalar", scores) ** -0.5,
        "SCORES_CAP": _cap(attributes, "attn_logit_softcapping", scores_cap),
        "LOGITS_CAP": _cap(attributes, "final_logit_softcapping", cap),
    }


def _cap(attributes: Attributes, name: str, default: float | None) -> float | None:
    """A bound; null is none."""
    return attributes.get(name) if attributes.has(name) else default


def gemma2_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gemma2/parts.gin`; without a list, every other layer slides, the first one included."""
    attributes.without_effect("cache_implementation")
    common = _common(attributes)
    default = [FULL if index % 2 else SLIDING for index in range(common["NUM_LAYERS"])]
    return {
        **common,
        **rotary(attributes),
        **bounded(attributes, 256, 50.0, 30.0),
        **llama.classes(attributes),
        **layers(kinds_of(attributes, default), _SANDWICH),
        "WINDOW": attributes.get("sliding_window", 4096) - 1,
    }


def gemma3_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gemma3/parts.gin`; without a list, every sixth layer is full."""
    attributes.without_effect("cache_implementation", "max_position_embeddings")
    common = _common(attributes)
    every = attributes.get("sliding_window_pattern", attributes.get("_sliding_window_pattern", 6))
    default = [SLIDING if (index + 1) % every else FULL for index in range(common["NUM_LAYERS"])]
    return {
        **common,
        **_two_rotations(attributes),
        **bounded(attributes, 256, None, None),
        **llama.classes(attributes),
        "SCORES_CAP": None,
        **layers(kinds_of(attributes, default), _SANDWICH),
        "WINDOW": attributes.get("sliding_window", 4096) - 1,
    }


def _two_rotations(attributes: Attributes) -> dict[str, Any]:
    """Full layers rotate by `rope_theta`, scaled; sliding ones by `rope_local_base_freq`."""
    attributes.without_effect("rope_theta", "rope_scaling", "rope_local_base_freq")
    new = attributes.get("rope_parameters", {})
    if new:
        full, sliding = dict(new[FULL]), dict(new[SLIDING])
    else:
        full = {"rope_theta": attributes.get("rope_theta", 1e6), **attributes.get("rope_scaling", {})}
        sliding = {"rope_theta": attributes.get("rope_local_base_freq", 1e4)}
    return {**rotary_macros(attributes, full), **rotary_macros(attributes, sliding, "SLIDING_")}


_THEIRS, _OURS = "model.layers.{i}", "decoder/layers_{i}"
SANDWICH_RULES = llama.with_head(
    llama.BODY,
    norm(f"{_THEIRS}.post_attention_layernorm", f"{_OURS}/post_self_attention_layer_norm"),
    norm(f"{_THEIRS}.pre_feedforward_layernorm", f"{_OURS}/pre_mlp_layer_norm"),
    norm(f"{_THEIRS}.post_feedforward_layernorm", f"{_OURS}/post_mlp_layer_norm"),
)


def _family(kind: str, gin: str, settings: Any, rules: Any) -> Family:
    return Family((kind,), f"{gin}/parts", settings, rules, (), llama.UNUSED, "model.", ("lm_head", "score"))


FAMILIES = (
    _family("gemma", "gemma", gemma_settings, llama.RULES),
    _family("gemma2", "gemma2", gemma2_settings, SANDWICH_RULES),
    _family("gemma3_text", "gemma3", gemma3_settings, SANDWICH_RULES),
)
