"""What T5X's and google/flaxformer's names are here: the tables behind `flaxformer migrate` and old include paths.

A table says what something is called now; where there is nothing of the kind, what to write instead.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping


class No(str):
    """Why there is no counterpart, and what to write instead."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of ours that stands for an old one, with the names it has of it.

    Attributes:
      name: its full dotted path.
      names: functions and classes, called as they were.
      parameters: by `name.parameter`, what has no counterpart; other parameters keep their name.
    """

    name: str
    names: tuple[str, ...]
    parameters: Mapping[str, No] = dataclasses.field(default_factory=dict)


_INFER = No("nothing is decoded during training: decode in Python with flaxformer.decoding.generate")

MODULES: Mapping[str, Module] = {
    "t5x.adafactor": Module(
        "flaxformer.t5x.adafactor", ("Adafactor", "FactorDim", "HParamMap", "standard_logical_factor_rules")
    ),
    "t5x.decoding": Module("flaxformer.decoding.t5x", ("beam_search", "temperature_sample")),
    "t5x.losses": Module(
        "flaxformer.training.losses",
        (
            "SpecialLossNormalizingFactor",
            "compute_weighted_cross_entropy",
            "cross_entropy_with_logits",
            "get_loss_normalizing_factor_and_weights",
        ),
    ),
    "t5x.models": Module(
        "flaxformer.training.models",
        (
            "BaseModel",
            "BaseTransformerModel",
            "DecoderOnlyModel",
            "DecoderParams",
            "EncoderDecoderModel",
            "remove_prefix",
        ),
    ),
    "t5x.optimizers": Module("flaxformer.t5x.optimizers", ("MultiOptimizer",)),
    "t5x.partitioning": Module("flaxformer.t5x.partitioning", ("PjitPartitioner", "standard_logical_axis_rules")),
    "t5x.train": Module(
        "flaxformer.t5x.train",
        ("train",),
        {"train.infer_eval_dataset_cfg": _INFER, "train.inference_evaluator_cls": _INFER},
    ),
    "t5x.trainer": Module("flaxformer.t5x.trainer", ("Trainer",)),
    "t5x.utils": Module(
        "flaxformer.t5x.utils",
        (
            "CheckpointConfig",
            "DatasetConfig",
            "RestoreCheckpointConfig",
            "SaveCheckpointConfig",
            "create_learning_rate_scheduler",
        ),
    ),
    "seqio": Module("flaxformer.t5x.vocabularies", ("ByteVocabulary", "SentencePieceVocabulary")),
}
MODULES = {**MODULES, "__main__": MODULES["t5x.train"]}

# Longest prefix first matched; everything under `t5x` that is nowhere above is listed with the last sentence.
NO_COUNTERPART: Mapping[str, No] = {
    "t5x.trainer": No(
        "the loop is flaxformer.training.runner.train, which computes a batch at once: bind its arguments"
    ),
    "t5x.eval": No("evaluate in Python with flaxformer.training.runner.evaluate"),
    "t5x.infer": No("decode in Python with flaxformer.decoding.generate, from flaxformer.weights.t5x.restore_params"),
    "t5x.interactive_model": No("use flaxformer.training.step and flaxformer.decoding.generate in the notebook"),
    "t5x.contrib": No("this version has no counterpart of T5X's contributions"),
    "t5x": No("there is no counterpart: see flaxformer.training, flaxformer.decoding and flaxformer.weights"),
    "__main__": No("bind flaxformer.t5x.train.train, and start it with flaxformer train"),
    "flax.optim": No("flax has it no more: bind an optimizer of flaxformer.training.optimizers, or of optax"),
    "prompt_tuning": No("train a part of the parameters with flaxformer.t5x.optimizers.MultiOptimizer"),
}

# What `utils.` and the like mean in files that import nothing themselves.
USUAL_IMPORTS: Mapping[str, str] = {
    **{name.partition(".")[2]: name for name in MODULES if name.startswith("t5x.") and name != "t5x.train"},
    **{f"{name}_script": f"t5x.{name}" for name in ("train", "eval", "infer")},
    **{name: f"flaxformer.components.{name}" for name in ("dense", "embedding", "layer_norm")},
    "dense_attention": "flaxformer.components.attention.dense_attention",
    "relative_position_biases": "flaxformer.components.relative_position_biases",
    "seqio": "seqio",
    "t5_architecture": "flaxformer.architectures.t5.t5_architecture",
}

_T5 = "flaxformer/t5x/configs/t5"
_SIZES = ("small", "base", "large", "xl", "xxl")
_MODELS = [f"t5_{size}" for size in ("small", "base", "large", "3B", "11B")]
_MODELS += [f"{family}_{size}" for family in ("t5_1_1", "mt5", "byt5") for size in _SIZES]

# google/flaxformer's and T5X's gin files that are shipped under another name.
FILES: Mapping[str, str] = {
    f"{_T5}/architectures/t5_1_1_flaxformer.gin": "t5_1_1/parts.gin",
    f"{_T5}/architectures/t5_flaxformer.gin": "t5_1_0/parts.gin",
    f"{_T5}/architectures/flash_attention.gin": "t5x/flash_attention.gin",
    "flaxformer/t5x/checkpointing.gin": "t5x/checkpointing.gin",
    **{f"{_T5}/models/{name}.gin": f"t5x/models/{name}.gin" for name in _MODELS},
    **{f"t5x/configs/runs/{name}.gin": f"t5x/runs/{name}.gin" for name in ("pretrain", "finetune")},
}

NO_FILE: Mapping[str, No] = {
    "flaxformer/t5x/configs": No("this version ships no such family: keep a copy of the old file, and migrate it too"),
    "flaxformer/t5x/configs/longt5": No(
        "LongT5 is made of other parts here: include longt5/base.gin (or large, xl; sizes are macros) and leave out "
        "what is bound of longt5_architecture, long_attention and relative_position_biases_general. Parameters have "
        "the same names, but for encoder/side_relpos_bias/rel_embedding, here encoder/relpos_bias/global_embedding"
    ),
    "t5x/configs/runs/eval.gin": NO_COUNTERPART["t5x.eval"],
    "t5x/configs/runs/infer.gin": NO_COUNTERPART["t5x.infer"],
    "t5x/configs": No("T5X's file has no counterpart here"),
    "t5x/examples/t5": No("its model is not flaxformer's: include t5x/models/t5_1_1_<size>.gin, and bind the macros"),
    "t5x/examples": No("T5X's file has no counterpart here"),
}


def without_prefix(path: str) -> str:
    """An include's path from the folder that holds the package on.

    >>> without_prefix("google_research/flaxformer/t5x/checkpointing.gin")
    'flaxformer/t5x/checkpointing.gin'
    """
    found = re.search(r"(?:^|/)(flaxformer/t5x/.*)", path)
    return found[1] if found else path.removeprefix("./")
