"""Longformer: RoBERTa with windows and global tokens.

Decision: where a call names no global tokens, heads of classes make the first token global and heads of spans the
question, as the weights were trained; other models then have none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.attributes import Attributes
from flaxformer.weights.pretrained.families import bert
from flaxformer.weights.pretrained.family import Family, Gin
from flaxformer.weights.pretrained.rules import Rule, linear, table

_HEADS = {
    suffix: bert.HEADS[suffix]
    for suffix in (
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "Model",
    )
}
_FLAGS = {"%SEQUENCE_HEADS": Gin("@global_flags.First()"), "%SPAN_HEADS": Gin("@global_flags.BeforeSeparator()")}


def settings(attributes: Attributes, names: Collection[str]) -> dict[str, Any]:
    """Bindings of `gin/longformer/parts.gin`; the position table is as RoBERTa's."""
    attributes.without_effect(
        "onnx_export", "attention_mode", "attention_dilation", "autoregressive", "ignore_attention_mask"
    )
    attributes.one_of("attention_mode", "longformer", "sliding_chunks")  # two ways to compute the same
    attributes.one_of("ignore_attention_mask", False)
    attributes.without_effect("onnx_export")
    layers, front = attributes.get("num_hidden_layers", 12), attributes.get("pad_token_id", 1) + 1
    common = bert.common(attributes, _HEADS, names, "longformer.pooler.dense")
    flags = _FLAGS.get(common["HEADS"])
    return {
        **bert.sizes(attributes),
        **common,
        **windows(attributes, layers),
        "PADDING_ID": front - 1,
        "NUM_EMBEDDINGS": attributes.get("vocab_size", 30522),
        "NUM_POSITIONS": attributes.get("max_position_embeddings", 512) - front,
        "POSITION_OFFSET": front,
        "LAYER_NORM_EPSILON": attributes.get("layer_norm_eps", 1e-12),
        "CLASSIFIER_DROPOUT_RATE": attributes.get("hidden_dropout_prob", 0.1),
        "FLAG_TOKENS": flags,
        "SEPARATOR_ID": attributes.get("sep_token_id", 2),
    }


def windows(attributes: Attributes, layers: int, default: int = 512) -> dict[str, Any]:
    """Layers and their windows; theirs count both sides.

    Raises:
      CheckpointError: a `ValueError`, for odd or missing windows.
    """
    sizes = attributes.get("attention_window", default)
    sizes = [sizes] * layers if isinstance(sizes, int) else list(sizes)
    if len(sizes) != layers or any(size < 2 or size % 2 for size in sizes):
        raise CheckpointError(
            f"{attributes.where} has attention_window={sizes}; expected even numbers above 0, one for each of {layers} "
            "layers, or one for all."
        )
    if len(set(sizes)) == 1:
        return {"WINDOW": sizes[0] // 2}
    kinds = [f"@window_{size}/t5_architecture.EncoderLayer" for size in sizes]
    made = {f"window_{size}/longformer_attention.LongformerAttention.window": size // 2 for size in set(sizes)}
    return made | {"LAYERS": Gin(f"({', '.join(kinds)},)")}


def projections(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of both kinds of queries, keys and values."""
    parts = [part + kind for kind in ("", "_global") for part in ("query", "key", "value")]
    return table(*(linear(f"{theirs}.{part}", f"{ours}/{part}") for part in parts))


_SELF = "longformer.encoder.layer.{i}.attention.self"
RULES = table(
    [rule for rule in bert.body("longformer") if not rule.theirs.startswith(_SELF)],
    projections(_SELF, "encoder/layers_{i}/attention"),
    bert.masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    linear("longformer.pooler.dense", "heads_pooled/dense"),
    bert.DEEP,
    bert.TOKENS,
)
_UNUSED = (
    r".*\.embeddings\.(position_ids|token_type_ids)",
    r"lm_head\.decoder\.(weight|bias)",
    r"longformer\.pooler\..*",
)
_HEAD_NAMES = ("classifier", "qa_outputs", "lm_head")

FAMILIES = (Family(("longformer",), "longformer/parts", settings, RULES, (), _UNUSED, "longformer.", _HEAD_NAMES),)
