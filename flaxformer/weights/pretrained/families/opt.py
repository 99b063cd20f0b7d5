"""OPT. Its smallest but one, of 350 million parameters, is post-norm and has a token table narrower than its layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture, without_logits
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Transposed


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/opt/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.one_of("layer_norm_elementwise_affine", True)
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect("layerdrop", "activation_dropout")
    heads, width = attributes.get("num_attention_heads", 12), attributes.get("hidden_size", 768)
    biased = attributes.get("enable_bias", True)
    return {
        **without_logits(attributes),
        "NUM_LAYERS": attributes.get("num_hidden_layers", 12),
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": heads,
        "HEAD_DIM": width // heads,
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("ffn_dim", 3072),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 2048),
        "ACTIVATIONS": (activation(attributes, "activation_function", "relu"),),
        "DROPOUT_RATE": attributes.get("dropout", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
        "BIASED": ("query", "key", "value", "out") if biased else (),
        "MLP_BIAS": biased,
        **_norms(attributes, narrow=attributes.get("word_embed_proj_dim", width) != width),
    }


def _norms(attributes: Attributes, narrow: bool) -> dict[str, Any]:
    """Where the norms are, and the projections between a narrower token table and the layers."""
    before = attributes.get("do_layer_norm_before", True)
    removed = attributes.get("_remove_final_layer_norm", False)
    last = before and not removed
    macros: dict[str, Any] = {} if before else {"RESIDUAL": Gin("@t5_architecture.PostNorm()")}
    if not narrow:
        return macros if last else macros | {"FINAL_NORM": None}
    return macros | {
        "TOKEN_DIM": attributes.need("word_embed_proj_dim"),
        "TOKEN_EMBEDDER": Gin("@token_embedding.ProjectedEmbed"),
        "FINAL_NORM": Gin("@norm_and_projection/linen.Sequential" if last else "@project_out/dense.DenseGeneral"),
    }


_THEIRS, _OURS = "model.decoder.layers.{i}", "decoder/layers_{i}"

RULES = table(
    Rule("model.decoder.embed_tokens.weight", "decoder/token_embedder/embedding"),
    Rule("model.decoder.embed_positions.weight", "decoder/position_embedder/pos_embedding"),
    Rule("model.decoder.project_in.weight", "decoder/token_embedder/projection/kernel", Transposed()),
    Rule("model.decoder.project_out.weight", "decoder/decoder_norm/kernel", Transposed()),
    attention(f"{_THEIRS}.self_attn", f"{_OURS}/self_attention"),
    norm(f"{_THEIRS}.self_attn_layer_norm", f"{_OURS}/pre_self_attention_layer_norm"),
    linear(f"{_THEIRS}.fc1", f"{_OURS}/mlp/wi"),
    linear(f"{_THEIRS}.fc2", f"{_OURS}/mlp/wo"),
    norm(f"{_THEIRS}.final_layer_norm", f"{_OURS}/pre_mlp_layer_norm"),
    norm("model.decoder.final_layer_norm", "decoder/decoder_norm"),
    norm("model.decoder.final_layer_norm", "decoder/decoder_norm/layers_0"),
    Rule("model.decoder.project_out.weight", "decoder/decoder_norm/layers_1/kernel", Transposed()),
)

FAMILIES = (Family(("opt",), "opt/parts", settings, RULES, (), (r"lm_head\.weight",), "model.", ("lm_head",)),)
