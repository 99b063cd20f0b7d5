"""T5Gemma: two stacks of Gemma 2's layers, each with a configuration of its own.

Decision: what both stacks share here (the norm's epsilon, activations, rotations, bounds and scale of the scores) has
to be equal in their configurations, as it is in the released ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import gemma, llama
from flaxformer.weights.pretrained.family import Family, Gin, check_architecture
from flaxformer.weights.pretrained.rope import FULL, SLIDING, kinds_of, rotary
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/t5gemma/parts.gin`."""
    check_architecture(attributes, "ForConditionalGeneration")
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect("attention_dropout", "classifier_dropout_rate", "dropout_rate", "vocab_size")
    encoder, decoder = attributes.part("encoder"), attributes.part("decoder")
    shared, other = (_shared(part) for part in (decoder, encoder))
    other["LOGITS_CAP"] = shared["LOGITS_CAP"]  # the encoder has no logits
    differing = sorted(name for name in shared if shared[name] != other[name])
    if differing:
        raise CheckpointError(
            f"{attributes.where} has stacks that differ in {', '.join(differing)}; expected the same in both, which is "
            "all that is implemented."
        )
    return {
        **shared,
        **_stack(encoder, "ENCODER", "Encoder"),
        **_stack(decoder, "DECODER", "Decoder"),
        "ENCODER_WINDOW": encoder.get("sliding_window", 4096),
        "DECODER_WINDOW": decoder.get("sliding_window", 4096) - 1,
        "PADDING_ID": attributes.get("pad_token_id", 0),
    }


def _shared(attributes: Attributes) -> dict[str, Any]:
    attributes.one_of("attention_bias", False)
    attributes.one_of("tie_word_embeddings", True)
    attributes.without_effect("is_decoder", "use_bidirectional_attention", "cross_attention_hidden_size")
    return {
        **rotary(attributes),
        **gemma.bounded(attributes, 256, 50.0, 30.0),
        "ACTIVATIONS": (gemma.gate(attributes), "linear"),
        "NORM_EPSILON": attributes.get("rms_norm_eps", 1e-6),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "DROPOUT_RATE": attributes.get("dropout_rate", 0.0),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.0),
    }


def _stack(attributes: Attributes, name: str, kind: str) -> dict[str, Any]:
    sizes = llama.sizes(attributes)
    count = sizes["NUM_LAYERS"]
    kinds = kinds_of(attributes, [FULL if index % 2 else SLIDING for index in range(count)])
    scope = {SLIDING: "sliding", FULL: "full"}
    layers = [f"@{kind.lower()}/{scope[kind_of]}/arrangements.Sandwich{kind}Layer" for kind_of in kinds]
    return {
        f"NUM_{name}_LAYERS": count,
        f"{name}_HEADS": sizes["NUM_HEADS"],
        f"{name}_KV_HEADS": sizes["NUM_KV_HEADS"],
        f"{name}_HEAD_DIM": attributes.get("head_dim", 256),
        f"{name}_DIM": sizes["EMBED_DIM"],
        f"{name}_MLP_DIM": sizes["MLP_DIM"],
        f"{name}_EMBEDDING_SCALE": sizes["EMBED_DIM"] ** 0.5,
        f"{name}_LAYERS": Gin(f"({', '.join(layers)},)"),
    }


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_MLP = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return table(*(linear(f"{theirs}.{name}", f"{ours}/{part}") for name, part in _ATTENTION.items()))


def _layers(stack: str, own: str) -> tuple[Rule, ...]:
    theirs, ours = f"model.{stack}.layers.{{i}}", f"{stack}/layers_{{i}}"
    return table(
        Rule(f"model.{stack}.embed_tokens.weight", f"{stack}/token_embedder/embedding"),
        norm(f"model.{stack}.norm", f"{stack}/{stack}_norm"),
        _attention(f"{theirs}.self_attn", f"{ours}/{own}"),
        *(linear(f"{theirs}.mlp.{name}", f"{ours}/mlp/{part}") for name, part in _MLP.items()),
        norm(f"{theirs}.pre_self_attn_layernorm", f"{ours}/pre_{own}_layer_norm"),
        norm(f"{theirs}.post_self_attn_layernorm", f"{ours}/post_{own}_layer_norm"),
        norm(f"{theirs}.pre_feedforward_layernorm", f"{ours}/pre_mlp_layer_norm"),
        norm(f"{theirs}.post_feedforward_layernorm", f"{ours}/post_mlp_layer_norm"),
    )


_CROSS = "model.decoder.layers.{i}"
RULES = table(
    _layers("encoder", "attention"),
    _layers("decoder", "self_attention"),
    _attention(f"{_CROSS}.cross_attn", "decoder/layers_{i}/encoder_decoder_attention"),
    norm(f"{_CROSS}.pre_cross_attn_layernorm", "decoder/layers_{i}/pre_cross_attention_layer_norm"),
    norm(f"{_CROSS}.post_cross_attn_layernorm", "decoder/layers_{i}/post_cross_attention_layer_norm"),
)

FAMILIES = (Family(("t5gemma",), "t5gemma/parts", settings, RULES, unused=(r"lm_head\.out_proj\.weight",)),)
