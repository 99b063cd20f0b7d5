"""BERT, RoBERTa and XLM-R, DistilBERT, ELECTRA, with the heads that they are published with.

Decision: `pooler` weights of a body without heads are used when the file has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes, activation
from flaxformer.weights.pretrained.family import Family, Gin, architecture
from flaxformer.weights.pretrained.rules import Rule, linear, norm, table

# What follows the name of the family in an architecture, and the macro of the gin file that has its heads.
HEADS = {
    "ForPreTraining": "PRETRAINING_HEADS",
    "ForMaskedLM": "MASKED_LM_HEADS",
    "ForNextSentencePrediction": "NEXT_SENTENCE_HEADS",
    "ForSequenceClassification": "SEQUENCE_HEADS",
    "ForTokenClassification": "TOKEN_HEADS",
    "ForQuestionAnswering": "SPAN_HEADS",
    "Model": "NO_HEADS",
}
_ELECTRA_HEADS = {**HEADS, "ForPreTraining": "DETECTOR_HEADS"}


def common(attributes: Attributes, heads: Mapping[str, str], names: Collection[str], pooler: str) -> dict[str, Any]:
    """Heads, classes, padding and vocabulary; `pooler` is the dense layer that makes a body a pooled one.

    Raises:
      CheckpointError: a `ValueError`, for an architecture that is not among `heads`.
    """
    attributes.one_of("tie_word_embeddings", True)
    kind = architecture(attributes, "Model")
    suffix = next((suffix for suffix in heads if kind.endswith(suffix)), None)
    if suffix is None:
        raise CheckpointError(
            f"{attributes.where} has the architecture {kind!r}, which is not implemented; expected one that ends in "
            f"{', '.join(heads)}."
        )
    chosen = heads[suffix]
    if chosen == "NO_HEADS" and f"{pooler}.weight" in names:
        chosen = "POOLED_HEADS"
    labels = attributes.get("id2label", {})
    return {
        "HEADS": Gin(f"%{chosen}"),
        "NUM_CLASSES": attributes.get("num_labels", len(labels) or 2),
        "PADDING_ID": attributes.get("pad_token_id", 0),
        "NUM_EMBEDDINGS": attributes.need("vocab_size"),
    }


def sizes(attributes: Attributes, act: str = "gelu") -> dict[str, Any]:
    """What BERT, RoBERTa, ELECTRA and ALBERT name alike; `act` is the activation where none is named."""
    attributes.one_of("position_embedding_type", "absolute")
    attributes.one_of("is_decoder", False)
    attributes.one_of("add_cross_attention", False)
    dropout = attributes.get("hidden_dropout_prob", 0.1)
    return {
        "NUM_LAYERS": attributes.get("num_hidden_layers", 12),
        "NUM_HEADS": attributes.get("num_attention_heads", 12),
        "EMBED_DIM": attributes.get("hidden_size", 768),
        "MLP_DIM": attributes.get("intermediate_size", 3072),
        "NUM_TOKEN_TYPES": attributes.get("type_vocab_size", 2),
        "ACTIVATION": activation(attributes, "hidden_act", act),
        "DROPOUT_RATE": dropout,
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_probs_dropout_prob", 0.1),
        "CLASSIFIER_DROPOUT_RATE": attributes.get("classifier_dropout", dropout),
    }


def bert_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/bert/parts.gin`."""
    attributes.without_effect(
        "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"
    )
    return {
        **sizes(attributes),
        **common(attributes, HEADS, names, "bert.pooler.dense"),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
    }


def roberta_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/roberta/parts.gin`; the position table has rows up to that of padding in front."""
    front = attributes.get("pad_token_id", 1) + 1
    heads = {suffix: macro for suffix, macro in HEADS.items() if suffix not in ("ForPreTraining",)}
    return {
        **sizes(attributes),
        **common(attributes, heads, names, "roberta.pooler.dense"),
        "PADDING_ID": front - 1,
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512) - front,
        "POSITION_OFFSET": front,
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
    }


def electra_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/electra/parts.gin`."""
    attributes.without_effect("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj")
    attributes.without_effect("embedding_size", "generator_size")
    width = attributes.get("hidden_size", 256)
    narrow = attributes.get("embedding_size", 128)
    return {
        **sizes(attributes),
        "NUM_HEADS": attributes.get("num_attention_heads", 4),
        "EMBED_DIM": width,
        "MLP_DIM": attributes.get("intermediate_size", 1024),
        **common(attributes, _ELECTRA_HEADS, names, "electra.pooler.dense"),
        "TOKEN_DIM": narrow,
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512),
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
        **({"EMBEDDING_TRANSFORM": Gin("@layer_norm.LayerNorm")} if narrow == width else {}),
    }


def distilbert_settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/distilbert/parts.gin`; the epsilon of its norms is fixed."""
    attributes.without_effect("sinusoidal_pos_embds", "qa_dropout")  # the sinusoids are in the file too
    return {
        **common(attributes, HEADS, names, "distilbert.pooler.dense"),
        "NUM_LAYERS": attributes.get("n_layers", 6),
        "NUM_HEADS": attributes.get("n_heads", 12),
        "EMBED_DIM": attributes.get("dim", 768),
        "MLP_DIM": attributes.get("hidden_dim", 3072),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512),
        "ACTIVATION": activation(attributes, "activation", "gelu"),
        "DROPOUT_RATE": attributes.get("dropout", 0.1),
        "ATTENTION_DROPOUT_RATE": attributes.get("attention_dropout", 0.1),
        "CLASSIFIER_DROPOUT_RATE": attributes.get("seq_classif_dropout", 0.2),
    }


def body(name: str) -> tuple[Rule, ...]:
    """The encoder, as BERT names it."""
    layer, ours = f"{name}.encoder.layer.{{i}}", "encoder/layers_{i}"
    return table(
        *embeddings(name, "encoder/embedding_transform"),
        *(linear(f"{layer}.attention.self.{part}", f"{ours}/attention/{part}") for part in ("query", "key", "value")),
        linear(f"{layer}.attention.output.dense", f"{ours}/attention/out"),
        norm(f"{layer}.attention.output.LayerNorm", f"{ours}/pre_attention_layer_norm"),
        linear(f"{layer}.intermediate.dense", f"{ours}/mlp/wi"),
        linear(f"{layer}.output.dense", f"{ours}/mlp/wo"),
        norm(f"{layer}.output.LayerNorm", f"{ours}/pre_mlp_layer_norm"),
    )


def embeddings(name: str, norm_path: str) -> tuple[Rule, ...]:
    """The three tables and their norm."""
    return table(
        Rule(f"{name}.embeddings.word_embeddings.weight", "encoder/token_embedder/embedding"),
        Rule(f"{name}.embeddings.position_embeddings.weight", "encoder/position_embedder/pos_embedding"),
        Rule(f"{name}.embeddings.token_type_embeddings.weight", "encoder/token_type_embedder/embedding"),
        norm(f"{name}.embeddings.LayerNorm", norm_path),
    )


def masked_lm(dense: str, layer_norm: str, bias: str) -> tuple[Rule, ...]:
    """The head of a masked language model."""
    return table(
        linear(dense, "heads_masked_lm/dense"),
        norm(layer_norm, "heads_masked_lm/layer_norm"),
        Rule(bias, "heads_masked_lm/logits/bias"),
    )


# One dense layer on tokens, for labels and for spans.
TOKENS = table(linear("classifier", "heads_token_labels/dense"), linear("qa_outputs", "heads_spans/dense"))
DEEP = table(linear("classifier.dense", "heads_labels/dense"), linear("classifier.out_proj", "heads_labels/out"))

BERT_RULES = table(
    body("bert"),
    masked_lm("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    linear("bert.pooler.dense", "heads_pooled/dense"),
    linear("cls.seq_relationship", "heads_next_sentence/dense"),
    linear("classifier", "heads_labels/dense"),
    TOKENS,
)
ROBERTA_RULES = table(
    body("roberta"),
    masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    linear("roberta.pooler.dense", "heads_pooled/dense"),
    DEEP,
    TOKENS,
)
ELECTRA_RULES = table(
    body("electra"),
    norm("electra.embeddings.LayerNorm", "encoder/embedding_transform/layers_0"),
    linear("electra.embeddings_project", "encoder/embedding_transform/layers_1"),
    masked_lm("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
    linear("discriminator_predictions.dense", "heads_replaced/dense"),
    linear("discriminator_predictions.dense_prediction", "heads_replaced/out"),
    DEEP,
    TOKENS,
)

_LAYER = "distilbert.transformer.layer.{i}"
_OURS = "encoder/layers_{i}"
_PARTS = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "out"}
DISTILBERT_RULES = table(
    embeddings("distilbert", "encoder/embedding_transform"),
    *(linear(f"{_LAYER}.attention.{theirs}", f"{_OURS}/attention/{ours}") for theirs, ours in _PARTS.items()),
    norm(f"{_LAYER}.sa_layer_norm", f"{_OURS}/pre_attention_layer_norm"),
    linear(f"{_LAYER}.ffn.lin1", f"{_OURS}/mlp/wi"),
    linear(f"{_LAYER}.ffn.lin2", f"{_OURS}/mlp/wo"),
    norm(f"{_LAYER}.output_layer_norm", f"{_OURS}/pre_mlp_layer_norm"),
    masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    linear("pre_classifier", "heads_labels/dense"),
    linear("classifier", "heads_labels/out"),
    TOKENS,
)

# The TensorFlow names of norms, positions as a buffer, and copies of the token table and its bias.
_RENAMES = ((r"(.*LayerNorm\.)gamma", r"\1weight"), (r"(.*LayerNorm\.)beta", r"\1bias"))
_UNUSED = (
    r".*\.embeddings\.(position_ids|token_type_ids)",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"lm_head\.decoder\.(weight|bias)",
    r"vocab_projector\.weight",
    r"generator_lm_head\.weight",
)
# A masked language model saved from pretraining keeps the rest.
_BERT_UNUSED = (*_UNUSED, r"bert\.pooler\..*", r"cls\.seq_relationship\..*")
_HEAD_NAMES = (
    "cls.",
    "classifier",
    "qa_outputs",
    "lm_head",
    "vocab_",
    "pre_classifier",
    "generator_",
    "discriminator_",
)

FAMILIES = (
    Family(("bert",), "bert/parts", bert_settings, BERT_RULES, _RENAMES, _BERT_UNUSED, "bert.", _HEAD_NAMES),
    Family(
        ("roberta", "xlm-roberta", "camembert"),
        "roberta/parts",
        roberta_settings,
        ROBERTA_RULES,
        _RENAMES,
        (*_UNUSED, r"roberta\.pooler\..*"),
        "roberta.",
        _HEAD_NAMES,
    ),
    Family(
        ("distilbert",),
        "distilbert/parts",
        distilbert_settings,
        DISTILBERT_RULES,
        _RENAMES,
        _UNUSED,
        "distilbert.",
        _HEAD_NAMES,
    ),
    Family(("electra",), "electra/parts", electra_settings, ELECTRA_RULES, _RENAMES, _UNUSED, "electra.", _HEAD_NAMES),
)
