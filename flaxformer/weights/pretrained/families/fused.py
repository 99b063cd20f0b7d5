"""GPT-NeoX, BLOOM and Falcon keep query, key and value in one matrix, each interleaved its own way; and Phi, which is
arranged as they are, with matrices apart.

Decisions: BLOOM with its residual behind the norm is refused, since no release has it. Falcon-RW's biases are added
once, as transformers does by default; where it is asked for attention weights, its release 5.24 adds them twice.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families import llama
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture, without_logits
from flaxformer.weights.pretrained.rope import rotary
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Grouped, Transposed

_OURS = "decoder/layers_{i}"
_ALL = ("query", "key", "value", "out")
_SEQUENTIAL = {"LAYER": Gin("@t5_architecture.DecoderLayer")}


def neox_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gpt_neox/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.one_of("is_decoder", False, True)
    attributes.without_effect("classifier_dropout")
    return {
        **llama.sizes(attributes),
        **llama.head(attributes),
        **rotary(attributes, fraction=0.25),
        **_layers(attributes, "layer_norm_eps", "hidden_dropout"),
        "ACTIVATIONS": (activation(attributes, "hidden_act", "gelu"),),
        "BIASED": _ALL if attributes.get("attention_bias", True) else (),
        **({} if attributes.get("use_parallel_residual", True) else _SEQUENTIAL),
    }


def _layers(attributes: Attributes, epsilon: str, dropout: str) -> dict[str, Any]:
    return {
        "NORM_EPSILON": attributes.get(epsilon, 1e-5),
        "DROPOUT_RATE": attributes.get(dropout, 0.0),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
    }


def phi_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/phi/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.one_of("tie_word_embeddings", False)
    return {
        **llama.sizes(attributes),
        **without_logits(attributes),
        **rotary(attributes, fraction=0.5),
        **_layers(attributes, "layer_norm_eps", "resid_pdrop"),
        "EMBEDDING_DROPOUT_RATE": attributes.get("embd_pdrop", 0.0),
        "ACTIVATIONS": (activation(attributes, "hidden_act", "gelu_new"),),
        "QK_NORM": Gin("@heads/layer_norm.LayerNorm()") if attributes.get("qk_layernorm", False) else None,
    }


def bloom_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/bloom/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.one_of("apply_residual_connection_post_layernorm", False)
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect(
        "pretraining_tp", "slow_but_exact", "skip_bias_add", "skip_bias_add_qkv", "seq_length",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "unk_token_id", "n_inner",
    )  # fmt: skip
    attributes.without_effect("hidden_size", "num_attention_heads", "num_hidden_layers", "n_embed")
    width = attributes.get("hidden_size", attributes.get("n_embed", 64))
    heads = attributes.get("n_head", attributes.get("num_attention_heads", 8))
    return {
        "NUM_LAYERS": attributes.get("n_layer", attributes.get("num_hidden_layers", 2)),
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": heads,
        "HEAD_DIM": width // heads,
        "EMBED_DIM": width,
        "MLP_DIM": 4 * width,
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        **without_logits(attributes),
        **_layers(attributes, "layer_norm_epsilon", "hidden_dropout"),
    }


def falcon_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/falcon/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.without_effect("parallel_attn", "num_ln_in_parallel_attn", "new_decoder_architecture", "multi_query")
    attributes.without_effect("num_kv_heads", "n_head_kv", "apply_residual_connection_post_layernorm")
    heads, width = attributes.get("num_attention_heads", 71), attributes.get("hidden_size", 4544)
    new = attributes.get("new_decoder_architecture", False)
    biased = attributes.get("bias", False)
    norms = attributes.get("num_ln_in_parallel_attn", 2 if new else 1)
    return {
        "NUM_LAYERS": attributes.get("num_hidden_layers", 32),
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": _kv_heads(attributes),
        "HEAD_DIM": width // heads,
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("ffn_hidden_size", 4 * width),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        **llama.head(attributes, tied=True),
        **rotary(attributes),
        **_layers(attributes, "layer_norm_epsilon", "hidden_dropout"),
        "ACTIVATIONS": (activation(attributes, "activation", "gelu"),),
        "BIASED": _ALL if biased else (),
        "MLP_BIAS": biased,
        "OWN_MLP_NORM": bool(new and norms == 2),
        **({} if new or attributes.get("parallel_attn", True) else _SEQUENTIAL),
        **({"POSITIONS": Gin("@alibi.RoundedAlibi()")} if attributes.get("alibi", False) else {}),
    }


def _kv_heads(attributes: Attributes) -> int:
    heads = attributes.get("num_attention_heads", 71)
    if attributes.get("new_decoder_architecture", False):
        return attributes.get("num_kv_heads", heads)
    return 1 if attributes.get("multi_query", True) else heads


def _fused(theirs: str, groups: int) -> tuple[Rule, Rule]:
    parts = tuple(f"{_OURS}/self_attention/{part}" for part in _ALL[:3])
    return (
        Rule(f"{theirs}.weight", tuple(f"{part}/kernel" for part in parts), Grouped(groups)),
        Rule(f"{theirs}.bias", tuple(f"{part}/bias" for part in parts), Grouped(groups)),
    )


def _mlp(theirs: str) -> tuple[Rule, ...]:
    return table(
        linear(f"{theirs}.dense_h_to_4h", f"{_OURS}/mlp/wi"), linear(f"{theirs}.dense_4h_to_h", f"{_OURS}/mlp/wo")
    )


def neox_rules(attributes: Attributes) -> tuple[Rule, ...]:
    """[head][q, k, v]."""
    layer = "gpt_neox.layers.{i}"
    return table(
        Rule("gpt_neox.embed_in.weight", "decoder/token_embedder/embedding"),
        _fused(f"{layer}.attention.query_key_value", attributes.get("num_attention_heads", 64)),
        linear(f"{layer}.attention.dense", f"{_OURS}/self_attention/out"),
        _mlp(f"{layer}.mlp"),
        norm(f"{layer}.input_layernorm", f"{_OURS}/pre_self_attention_layer_norm"),
        norm(f"{layer}.post_attention_layernorm", f"{_OURS}/pre_mlp_layer_norm"),
        norm("gpt_neox.final_layer_norm", "decoder/decoder_norm"),
        Rule("embed_out.weight", "decoder/logits_dense/kernel", Transposed()),
    )


def bloom_rules(attributes: Attributes) -> tuple[Rule, ...]:
    """[head][q, k, v]."""
    groups = attributes.get("n_head", attributes.get("num_attention_heads", 8))
    return table(
        _transformer(groups),
        norm("transformer.word_embeddings_layernorm", "decoder/embedding_transform"),
        norm("transformer.h.{i}.input_layernorm", f"{_OURS}/pre_self_attention_layer_norm"),
        norm("transformer.h.{i}.post_attention_layernorm", f"{_OURS}/pre_mlp_layer_norm"),
    )


def falcon_rules(attributes: Attributes) -> tuple[Rule, ...]:
    """[key head][its queries, k, v]: one group with a single key head."""
    two = attributes.get("new_decoder_architecture", False) and attributes.get("num_ln_in_parallel_attn", 2) == 2
    return table(
        _transformer(_kv_heads(attributes)),
        norm(
            f"transformer.h.{{i}}.{'ln_attn' if two else 'input_layernorm'}", f"{_OURS}/pre_self_attention_layer_norm"
        ),
        norm(f"transformer.h.{{i}}.{'ln_mlp' if two else 'post_attention_layernorm'}", f"{_OURS}/pre_mlp_layer_norm"),
        Rule(llama.HEAD, "decoder/logits_dense/kernel", Transposed()),
    )


def _transformer(groups: int) -> tuple[Rule, ...]:
    layer = "transformer.h.{i}"
    return table(
        Rule("transformer.word_embeddings.weight", "decoder/token_embedder/embedding"),
        _fused(f"{layer}.self_attention.query_key_value", groups),
        linear(f"{layer}.self_attention.dense", f"{_OURS}/self_attention/out"),
        _mlp(f"{layer}.mlp"),
        norm("transformer.ln_f", "decoder/decoder_norm"),
    )


_PHI_LAYER = "model.layers.{i}"
_PHI = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "dense": "out"}
PHI_RULES = table(
    Rule("model.embed_tokens.weight", "decoder/token_embedder/embedding"),
    *(linear(f"{_PHI_LAYER}.self_attn.{theirs}", f"{_OURS}/self_attention/{ours}") for theirs, ours in _PHI.items()),
    *(norm(f"{_PHI_LAYER}.self_attn.{x}_layernorm", f"{_OURS}/self_attention/{x}_norm") for x in ("q", "k")),
    linear(f"{_PHI_LAYER}.mlp.fc1", f"{_OURS}/mlp/wi"),
    linear(f"{_PHI_LAYER}.mlp.fc2", f"{_OURS}/mlp/wo"),
    norm(f"{_PHI_LAYER}.input_layernorm", f"{_OURS}/pre_self_attention_layer_norm"),
    norm("model.final_layernorm", "decoder/decoder_norm"),
    linear("lm_head", "decoder/logits_dense"),
)

# Copies of a tied table, and buffers of old files.
_UNUSED = (
    r"lm_head\.weight",
    r"embed_out\.weight",
    r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    r".*\.rotary_emb\.inv_freq",
)

FAMILIES = (
    Family(
        ("gpt_neox",), "gpt_neox/parts", neox_settings, neox_rules, (), _UNUSED, "gpt_neox.", ("embed_out", "lm_head")
    ),
    Family(("phi",), "phi/parts", phi_settings, PHI_RULES, (), _UNUSED, "model.", ("lm_head",)),
    Family(("bloom",), "bloom/parts", bloom_settings, bloom_rules, (), _UNUSED, "transformer.", ("lm_head",)),
    Family(("falcon",), "falcon/parts", falcon_settings, falcon_rules, (), _UNUSED, "transformer.", ("lm_head",)),
)
