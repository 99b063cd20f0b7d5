"""T5 1.0 and 1.1, Flan-T5, ByT5 (all `t5`), mT5, UMT5 and Switch Transformers, whole or the encoder alone.

Decisions:

* A head of its own is used when the file has one (that is no copy of the token table), else the table:
  `tie_word_embeddings` says true in every file that transformers 5 writes, also where there is a head.
* The factor 1/√d_model on what the head reads belongs to T5 1.0, whose head is the table. Type `t5` says so by
  `scale_decoder_outputs`, and files of transformers 4, which lack that, by `tie_word_embeddings`. mT5 never has it.
* UMT5 was trained and published without the factor, with `tie_word_embeddings: false`; transformers 4 looks at that
  flag and so do we. Files that transformers 5 has written say true; there it applies the factor, and so do we.
* Switch Transformers have the factor where they are tied. Which layers are sparse follows from `num_sparse_*_layers`;
  `*_sparse_step` says the same. Their losses on the router read what this library leaves to training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes, our_activation
from flaxformer.weights.pretrained.family import Family, Gin, architecture, check_architecture, without_logits
from flaxformer.weights.pretrained.files import Weights
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table
from flaxformer.weights.pretrained.transforms import Transposed

HEAD = "lm_head.weight"
_BIAS = "SelfAttention.relative_attention_bias.weight"


def settings(attributes: Attributes, weights: Weights) -> dict[str, Any]:
    """Bindings of `gin/t5_1_1/published.gin`."""
    check_architecture(attributes, "ForConditionalGeneration", "LMHeadModel", "EncoderModel", "Model")
    attributes.without_effect(
        "classifier_dropout", "dense_act_fn", "is_gated_act", "is_decoder", "n_positions", "tie_word_embeddings"
    )
    attributes.without_effect("feed_forward_proj", "vocab_size", "scalable_attention")
    layers, width = attributes.get("num_layers", 6), attributes.get("d_model", 512)
    scaled = _scaled(attributes)
    return {
        "NUM_ENCODER_LAYERS": layers,
        "NUM_DECODER_LAYERS": attributes.get("num_decoder_layers", layers),
        "NUM_HEADS": attributes.get("num_heads", 8),
        "HEAD_DIM": attributes.get("d_kv", 64),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("d_ff", 2048),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
        "DROPOUT_RATE": attributes.get("dropout_rate", 0.1),
        "dense.MlpBlock.activations": _activations(attributes),
        "layer_norm.T5LayerNorm.epsilon": attributes.get("layer_norm_epsilon", 1e-6),
        "relative_position_biases.RelativePositionBiases.num_buckets": attributes.get(
            "relative_attention_num_buckets", 32
        ),
        "relative_position_biases.RelativePositionBiases.max_distance": attributes.get(
            "relative_attention_max_distance", 128
        ),
        **_head(HEAD in weights and not (scaled and _a_copy(weights)), width**-0.5 if scaled else None),
        **without_logits(attributes),
        **(_ENCODER if architecture(attributes, "").endswith("EncoderModel") else {}),
    }


def switch_settings(attributes: Attributes, weights: Weights) -> dict[str, Any]:
    """Bindings of `gin/switch/published.gin`."""
    attributes.without_effect(
        "router_aux_loss_coef", "router_z_loss_coef", "router_type", "add_router_probs", "output_router_logits",
        "encoder_sparse_step", "decoder_sparse_step", "initializer_factor", "add_cross_attention",
    )  # fmt: skip
    attributes.one_of("router_dtype", "float32")
    attributes.one_of("router_ignore_padding_tokens", False)
    attributes.one_of("batch_prioritized_routing", False)
    attributes.one_of("num_selected_experts", 1)
    activation = our_activation(attributes, attributes.get("dense_act_fn", "relu"), "dense_act_fn")
    common = settings(attributes, weights)
    sparse = {name: attributes.get(f"num_sparse_{name}_layers", 3) for name in ("encoder", "decoder")}
    counts = {"encoder": common["NUM_ENCODER_LAYERS"], "decoder": common["NUM_DECODER_LAYERS"]}
    layers = {
        f"{name.upper()}_LAYERS": _sparse_layers(f"t5_architecture.{name.title()}Layer", count, sparse[name])
        for name, count in counts.items()
    }
    return {
        **common,
        **layers,
        "NUM_EXPERTS": attributes.get("num_experts", 8),
        "CAPACITY": attributes.get("expert_capacity", 64),
        "JITTER": attributes.get("router_jitter_noise", 0.01),
        "ROUTER_BIAS": attributes.get("router_bias", False),
        "dense.MlpBlock.activations": (activation,),
        "mixture.MixtureOfExperts.activations": (activation,),
    }


def _sparse_layers(layer: str, count: int, sparse: int) -> Gin:
    """Of every so many layers the second is sparse; all are where there is one in each."""
    step = count // sparse if sparse else count + 2
    kinds = [f"@sparse/{layer}" if step == 1 or index % step == 1 else f"@{layer}" for index in range(count)]
    return Gin(f"({', '.join(kinds)},)")


_ENCODER = {
    "ARCHITECTURE": Gin("@t5_architecture.EncoderOnly()"),
    "t5_architecture.EncoderOnly.encoder_factory": Gin("@t5_architecture.Encoder"),
    "t5_architecture.Encoder.token_embedder_factory": Gin("@embedding.Embed"),
}


def _a_copy(weights: Weights) -> bool:
    """Whether the head is the token table again, as in old files of T5 1.0."""
    return np.array_equal(weights[HEAD].read(), weights["shared.weight"].read())


def _activations(attributes: Attributes) -> tuple[str, ...]:
    """`relu`, or `gated-gelu`, which means the approximation by tanh."""
    kind = attributes.get("feed_forward_proj", "relu")
    *gate, name = kind.split("-")
    if gate not in ([], ["gated"]):
        raise CheckpointError(
            f"{attributes.where} has feed_forward_proj={kind!r}; expected an activation, or 'gated-' and an activation."
        )
    ours = our_activation(attributes, "gelu_new" if kind == "gated-gelu" else name, "feed_forward_proj")
    return (ours, "linear") if gate else (ours,)


def _scaled(attributes: Attributes) -> bool:
    tied, kind = bool(attributes.get("tie_word_embeddings", True)), attributes.need("model_type")
    if kind in ("t5", "longt5"):
        return bool(attributes.get("scale_decoder_outputs", tied))
    return kind in ("umt5", "switch_transformers") and tied


def _head(own: bool, scale: float | None) -> dict[str, Any]:
    if not own:
        factory = "@logits.TiedLogits"
        return {"t5_architecture.Decoder.output_logits_factory": Gin(factory), "logits.TiedLogits.scale": scale}
    factory = "@output_logits/logits.OutputLogits"
    return {"t5_architecture.Decoder.output_logits_factory": Gin(factory), "logits.OutputLogits.scale": scale}


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return table(*(linear(f"{theirs}.{key}", f"{ours}/{name}") for key, name in names.items()))


def _layer(
    theirs: str, ours: str, branches: tuple[tuple[str, str, str], ...], mlp: str = "DenseReluDense"
) -> tuple[Rule, ...]:
    """The attentions `(theirs, ours, our norm)` of a layer, and its MLP."""
    rules = []
    for index, (name, attention, norm_name) in enumerate(branches):
        rules += _attention(f"{theirs}.layer.{index}.{name}", f"{ours}/{attention}")
        rules += norm(f"{theirs}.layer.{index}.layer_norm", f"{ours}/{norm_name}")
    last = len(branches)
    for kernel in ("wi", "wi_0", "wi_1", "wo"):
        rules += linear(f"{theirs}.layer.{last}.{mlp}.{kernel}", f"{ours}/mlp/{kernel}")
    rules += norm(f"{theirs}.layer.{last}.layer_norm", f"{ours}/pre_mlp_layer_norm")
    return tuple(rules)


def _biases(stack: str) -> tuple[Rule, Rule]:
    """The relative bias: that of the first layer is shared, or every layer has one."""
    return (
        Rule(f"{stack}.block.0.layer.0.{_BIAS}", f"{stack}/relpos_bias/rel_embedding", Transposed()),
        Rule(
            f"{stack}.block.{{i}}.layer.0.{_BIAS}",
            f"{stack}/layers_{{i}}/relpos_bias/rel_embedding",
            Transposed(),
        ),
    )


_SELF = ("SelfAttention", "attention", "pre_attention_layer_norm")
_OWN = ("SelfAttention", "self_attention", "pre_self_attention_layer_norm")
_CROSS = ("EncDecAttention", "encoder_decoder_attention", "pre_cross_attention_layer_norm")


def _experts(theirs: str, ours: str) -> tuple[Rule, ...]:
    kernels = (
        Rule(f"{theirs}.experts.expert_{{n}}.{name}.weight", f"{ours}/expert/{name}/kernel/{{n}}", Transposed())
        for name in ("wi", "wo")
    )
    return table(linear(f"{theirs}.router.classifier", f"{ours}/router"), *kernels)


def _rules(*layers: Sequence[Rule]) -> tuple[Rule, ...]:
    return table(
        Rule("shared.weight", "token_embedder/embedding"),
        Rule("shared.weight", "encoder/token_embedder/embedding"),  # of the encoder alone
        *layers,
        *(_biases(stack) for stack in ("encoder", "decoder")),
        *(norm(f"{stack}.final_layer_norm", f"{stack}/{stack}_norm") for stack in ("encoder", "decoder")),
        Rule(HEAD, "decoder/logits_dense/kernel", Transposed()),
    )


RULES = _rules(
    _layer("encoder.block.{i}", "encoder/layers_{i}", (_SELF,)),
    _layer("decoder.block.{i}", "decoder/layers_{i}", (_OWN, _CROSS)),
)
_SWITCH_RULES = _rules(
    _layer("encoder.block.{i}", "encoder/layers_{i}", (_SELF,), "mlp"),
    _layer("decoder.block.{i}", "decoder/layers_{i}", (_OWN, _CROSS), "mlp"),
    _experts("encoder.block.{i}.layer.1.mlp", "encoder/layers_{i}/mlp"),
    _experts("decoder.block.{i}.layer.2.mlp", "decoder/layers_{i}/mlp"),
)

# Old files repeat the token table, and have a bias where cross-attention never read one.
UNUSED = (
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"lm_head\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_.*",
)


FAMILIES = (
    Family(("t5", "mt5"), "t5_1_1/published", settings, RULES, unused=UNUSED, shares_bias=True),
    Family(
        ("switch_transformers",), "switch/published", switch_settings, _SWITCH_RULES, unused=UNUSED, shares_bias=True
    ),
    Family(("umt5",), "umt5/published", settings, RULES, unused=UNUSED),
)
