"""Llama, Mistral, Mixtral, Qwen2 and Qwen3: one table.

Decisions: a head of its own is used when the file has one and `tie_word_embeddings` is not true, else the token table.
Classifiers score every token; theirs return the score of the last token that is no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, Gin, architecture, check_architecture, without_logits
from flaxformer.weights.pretrained.rope import FULL, SLIDING, kinds_of, layers, rotary
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Transposed

HEAD = "lm_head.weight"
_LAYER = "t5_architecture.DecoderLayer"


def sizes(attributes: Attributes) -> dict[str, Any]:
    """What the whole line names alike."""
    heads, width = attributes.get("num_attention_heads", 32), attributes.get("hidden_size", 4096)
    return {
        "NUM_LAYERS": attributes.get("num_hidden_layers", 32),
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": attributes.get("num_key_value_heads", heads),
        "HEAD_DIM": attributes.get("head_dim", width // heads),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("intermediate_size", 11008),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "NORM_EPSILON": attributes.get("rms_norm_eps", 1e-6),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
    }


def head(attributes: Attributes, tied: bool = False) -> dict[str, Any]:
    """Which head: the token table, or a kernel."""
    if attributes.get("tie_word_embeddings", tied):
        return {"OUTPUT_LOGITS": Gin("@logits.TiedLogits"), **without_logits(attributes)}
    return {"OUTPUT_LOGITS": Gin("@output/logits.OutputLogits"), **without_logits(attributes)}


def classes(attributes: Attributes) -> dict[str, Any]:
    """The head of a classifier, which scores every token; that of the last one is the sequence's."""
    count = attributes.get("num_labels", len(attributes.get("id2label", {})) or 2)
    kind = architecture(attributes, "")
    if not kind.endswith(_CLASSIFIERS):
        return {}
    return {
        "OUTPUT_LOGITS": Gin("@output/logits.OutputLogits"),
        "LOGITS_BIAS": kind.endswith("ForTokenClassification"),
        "LOGITS_CAP": None,
        "output/logits.OutputLogits.features": count,
    }


_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")


def _common(attributes: Attributes) -> dict[str, Any]:
    check_architecture(attributes, "ForCausalLM", *_CLASSIFIERS, "Model")
    return {
        **sizes(attributes),
        **head(attributes),
        **classes(attributes),
        "ACTIVATIONS": (activation(attributes, "hidden_act", "silu"), "linear"),
    }


def _window(width: int | None) -> dict[str, Any]:
    return {} if width is None else {"WINDOW": width - 1}


def llama_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/llama/parts.gin`."""
    attributes.one_of("pretraining_tp", 1)
    biased = ("query", "key", "value", "out") if attributes.get("attention_bias", False) else ()
    return {
        **_common(attributes),
        **rotary(attributes),
        "BIASED": biased,
        "MLP_BIAS": attributes.get("mlp_bias", False),
    }


def mistral_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/mistral/parts.gin`; a missing window is one of 4096, null is none."""
    width = attributes.get("sliding_window") if attributes.has("sliding_window") else 4096
    common = _common(attributes)
    kinds = [FULL if width is None else SLIDING] * common["NUM_LAYERS"]
    return {
        **common,
        "NUM_KV_HEADS": attributes.get("num_key_value_heads", 8),
        **rotary(attributes),
        **layers(kinds, _LAYER),
        **_window(width),
    }


def mixtral_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/mixtral/parts.gin`. What only its losses read has no effect."""
    attributes.without_effect("router_aux_loss_coef", "output_router_logits")
    attributes.one_of("router_jitter_noise", 0.0)
    width, common = attributes.get("sliding_window"), _common(attributes)
    kinds = [FULL if width is None else SLIDING] * common["NUM_LAYERS"]
    return {
        **common,
        "NUM_KV_HEADS": attributes.get("num_key_value_heads", 8),
        "MLP_DIM": attributes.get("intermediate_size", 14336),
        "NORM_EPSILON": attributes.get("rms_norm_eps", 1e-5),
        "NUM_EXPERTS": attributes.get("num_local_experts", 8),
        "NUM_SELECTED": attributes.get("num_experts_per_tok", 2),
        **rotary(attributes, theta=1e6),
        **layers(kinds, _LAYER),
        **_window(width),
    }


def _qwen(attributes: Attributes) -> dict[str, Any]:
    common = _common(attributes)
    used = attributes.get("use_sliding_window", False)
    width, first = attributes.get("sliding_window", 4096), attributes.get("max_window_layers", 28)
    count = common["NUM_LAYERS"]
    default = [SLIDING if used and index >= first else FULL for index in range(count)]
    return {
        **common,
        **rotary(attributes),
        **layers(kinds_of(attributes, default), _LAYER),
        **_window(width if used else None),
    }


def qwen2_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/qwen2/parts.gin`."""
    return _qwen(attributes)


def qwen3_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/qwen3/parts.gin`."""
    biased = ("query", "key", "value", "out") if attributes.get("attention_bias", False) else ()
    return {**_qwen(attributes), "HEAD_DIM": attributes.get("head_dim", 128), "BIASED": biased}


_THEIRS, _OURS = "model.layers.{i}", "decoder/layers_{i}"
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_EXPERT = {"w1": "wi_0", "w3": "wi_1", "w2": "wo"}
_MLP = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}

BODY = table(
    Rule("model.embed_tokens.weight", "decoder/token_embedder/embedding"),
    *(linear(f"{_THEIRS}.self_attn.{name}", f"{_OURS}/self_attention/{ours}") for name, ours in _ATTENTION.items()),
    *(norm(f"{_THEIRS}.self_attn.{x}_norm", f"{_OURS}/self_attention/{x}_norm") for x in ("q", "k")),
    *(linear(f"{_THEIRS}.mlp.{name}", f"{_OURS}/mlp/{ours}") for name, ours in _MLP.items()),
    linear(f"{_THEIRS}.block_sparse_moe.gate", f"{_OURS}/mlp/router"),
    *(
        Rule(
            f"{_THEIRS}.block_sparse_moe.experts.{{n}}.{name}.weight",
            f"{_OURS}/mlp/expert/{ours}/kernel/{{n}}",
            Transposed(),
        )
        for name, ours in _EXPERT.items()
    ),
    norm(f"{_THEIRS}.input_layernorm", f"{_OURS}/pre_self_attention_layer_norm"),
    norm("model.norm", "decoder/decoder_norm"),
)


def with_head(*rules: Rule | Sequence[Rule]) -> Callable[[Attributes], tuple[Rule, ...]]:
    """The table for these rules and the head that the architecture has."""

    def made(attributes: Attributes) -> tuple[Rule, ...]:
        scored = architecture(attributes, "").endswith(_CLASSIFIERS)
        return table(*rules, linear("score" if scored else HEAD.removesuffix(".weight"), "decoder/logits_dense"))

    return made


RULES = with_head(BODY, norm(f"{_THEIRS}.post_attention_layernorm", f"{_OURS}/pre_mlp_layer_norm"))

# A copy of a tied table, and frequencies that old files keep as buffers.
UNUSED = (r"lm_head\.weight", r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def _family(kind: str, settings: Any) -> Family:
    return Family((kind,), f"{kind}/parts", settings, RULES, (), UNUSED, "model.", ("lm_head", "score"))


FAMILIES = (
    _family("llama", llama_settings),
    _family("mistral", mistral_settings),
    _family("mixtral", mixtral_settings),
    _family("qwen2", qwen2_settings),
    _family("qwen3", qwen3_settings),
)
