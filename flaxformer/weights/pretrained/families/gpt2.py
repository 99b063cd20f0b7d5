"""GPT-2. Its linear layers are stored `[in, out]`, as ours are, with query, key and value side by side."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture, without_logits
from flaxformer.weights.pretrained.rules import Rule, norm, table
from flaxformer.weights.pretrained.transforms import Joined, Transposed


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gpt2/parts.gin`."""
    check_architecture(attributes, "LMHeadModel", "Model")
    own = not attributes.get("tie_word_embeddings", True)
    attributes.one_of("add_cross_attention", False)
    attributes.without_effect("n_ctx", "reorder_and_upcast_attn")
    attributes.without_effect(*(f"summary_{x}" for x in _SUMMARY))
    layers, heads, width = attributes.get("n_layer", 12), attributes.get("n_head", 12), attributes.get("n_embd", 768)
    scaled = attributes.get("scale_attn_weights", True)
    by_layer = attributes.get("scale_attn_by_inverse_layer_idx", False)
    return {
        **({"OUTPUT_LOGITS": Gin("@output/logits.OutputLogits")} if own else {}),
        **without_logits(attributes),
        "NUM_LAYERS": layers,
        "NUM_HEADS": heads,
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("n_inner", 4 * width),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "NUM_POSITIONS": attributes.get("n_positions", 1024),
        "ACTIVATION": activation(attributes, "activation_function", "gelu_new"),
        "DROPOUT_RATE": attributes.get("resid_pdrop", 0.1),
        "EMBEDDING_DROPOUT_RATE": attributes.get("embd_pdrop", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attn_pdrop", 0.1),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_epsilon", 1e-5),
        "dense_attention.MultiHeadDotProductAttention.rescale_logits": scaled and not by_layer,
        **(_falling_scales(layers, (width // heads) ** -0.5 if scaled else 1.0) if by_layer else {}),
    }


def _falling_scales(layers: int, scale: float) -> dict[str, Any]:
    """Scores of layer i by `scale / (i + 1)`; every layer has a scope of its own."""
    kinds = [f"@layer_{index}/t5_architecture.DecoderLayer" for index in range(layers)]
    return {
        "t5_architecture.Decoder.layer_factory": Gin(f"({', '.join(kinds)},)"),
        "dense_attention.MultiHeadDotProductAttention.attention_fn": Gin("@attend.Attend()"),
        **{f"layer_{index}/attend.Attend.scale": scale / (index + 1) for index in range(layers)},
    }


_SUMMARY = ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")
_THEIRS, _OURS = "transformer.h.{i}", "decoder/layers_{i}"


def _dense(theirs: str, *ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{_THEIRS}.{theirs}.weight", tuple(f"{_OURS}/{path}/kernel" for path in ours), Joined()),
        Rule(f"{_THEIRS}.{theirs}.bias", tuple(f"{_OURS}/{path}/bias" for path in ours), Joined()),
    )


RULES = table(
    Rule("transformer.wte.weight", "decoder/token_embedder/embedding"),
    Rule("transformer.wpe.weight", "decoder/position_embedder/pos_embedding"),
    _dense("attn.c_attn", *(f"self_attention/{part}" for part in ("query", "key", "value"))),
    _dense("attn.c_proj", "self_attention/out"),
    _dense("mlp.c_fc", "mlp/wi"),
    _dense("mlp.c_proj", "mlp/wo"),
    norm(f"{_THEIRS}.ln_1", f"{_OURS}/pre_self_attention_layer_norm"),
    norm(f"{_THEIRS}.ln_2", f"{_OURS}/pre_mlp_layer_norm"),
    norm("transformer.ln_f", "decoder/decoder_norm"),
    Rule("lm_head.weight", "decoder/logits_dense/kernel", Transposed()),
)

# Copies of the table, and masks that old files keep as buffers.
_UNUSED = (r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")

FAMILIES = (Family(("gpt2",), "gpt2/parts", settings, RULES, (), _UNUSED, "transformer.", ("lm_head",)),)
