"""GPT-2. Its linear layers are stored `[in, out]`, as ours are, with query, key and value side by side."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, check_architecture
from flaxformer.weights.pretrained.rules import Rule, norm, table
from flaxformer.weights.pretrained.transforms import Joined


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/gpt2/parts.gin`."""
    check_architecture(attributes, "LMHeadModel", "Model")
    attributes.one_of("tie_word_embeddings", True)
    attributes.one_of("add_cross_attention", False)
    attributes.one_of("scale_attn_by_inverse_layer_idx", False)
    attributes.without_effect("n_ctx", "reorder_and_upcast_attn")
    attributes.without_effect(*(f"summary_{x}" for x in _SUMMARY))
    width = attributes.get("n_embd", 768)
    return {
        "NUM_LAYERS": attributes.get("n_layer", 12),
        "NUM_HEADS": attributes.get("n_head", 12),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("n_inner", 4 * width),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "NUM_POSITIONS": attributes.get("n_positions", 1024),
        "ACTIVATION": activation(attributes, "activation_function", "gelu_new"),
        "DROPOUT_RATE": attributes.get("resid_pdrop", 0.1),
        "EMBEDDING_DROPOUT_RATE": attributes.get("embd_pdrop", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attn_pdrop", 0.1),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_epsilon", 1e-5),
        "dense_attention.MultiHeadDotProductAttention.rescale_logits": attributes.get("scale_attn_weights", True),
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
)

# Copies of the table, and masks that old files keep as buffers.
_UNUSED = (r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")

FAMILIES = (Family(("gpt2",), "gpt2/parts", settings, RULES, (), _UNUSED, "transformer.", ("lm_head",)),)
