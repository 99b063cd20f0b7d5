"""OPT. Its smallest but one, of 350 million parameters, is post-norm and has a token table narrower than its layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.families.bart import attention
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Transposed


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/opt/parts.gin`."""
    check_architecture(attributes, "ForCausalLM", "Model")
    attributes.one_of("_remove_final_layer_norm", False)
    attributes.one_of("layer_norm_elementwise_affine", True)
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect("layerdrop", "activation_dropout")
    heads, width = attributes.get("num_attention_heads", 12), attributes.get("hidden_size", 768)
    biased = attributes.get("enable_bias", True)
    return {
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
        **_norms_and_widths(attributes, width, attributes.get("word_embed_proj_dim", width)),
    }


def _norms_and_widths(attributes: Attributes, width: int, narrow: int) -> dict[str, Any]:
    before = attributes.get("do_layer_norm_before", True)
    if before and narrow != width:
        raise CheckpointError(
            f"{attributes.where} has word_embed_proj_dim={narrow} beside do_layer_norm_before=True, which is not "
            f"implemented; expected {width}, the hidden_size, or norms behind the layers."
        )
    macros: dict[str, Any] = {} if before else {"RESIDUAL": Gin("@t5_architecture.PostNorm()"), "FINAL_NORM": None}
    if narrow == width:
        return macros
    return macros | {
        "TOKEN_DIM": narrow,
        "TOKEN_EMBEDDER": Gin("@token_embedding.ProjectedEmbed"),
        "FINAL_NORM": Gin("@project_out/dense.DenseGeneral"),
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
)

FAMILIES = (Family(("opt",), "opt/parts", settings, RULES, (), (r"lm_head\.weight",), "model.", ("lm_head",)),)
