"""What T5X's and google/flaxformer's names are here: the tables behind `flaxformer migrate`.

A table says what something is called now; where there is nothing of the kind, what to write instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


class No(str):
    """Why there is no counterpart, and what to write instead."""


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A function or class of ours that stands for an old one.

    Attributes:
      name: its full dotted path.
      parameters: of the old one, those that are called otherwise here or have no counterpart; others keep their name.
      uncalled: whether a reference loses its `()`: we take the function where T5X took its result.
    """

    name: str
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uncalled: bool = False


_DATA = "flaxformer.data.seqio_bridge.SeqioBatches"
_RUN = "flaxformer.training.runner.train"
_ITSELF = No("not needed: runner.train saves every save_every steps and goes on from its latest checkpoint by itself")
_INFER = No("decode in Python: flaxformer.decoding.generate, with the parameters of flaxformer.weights.t5x")
_PARTITIONER = No("there is no partitioner to bind: give jax.jit shardings made from the axis names in params_axes")
_RESTORE = No(
    "runner.train starts from fresh parameters: read others in Python with flaxformer.weights.t5x.restore_params"
)

SYMBOLS: Mapping[str, Symbol] = {
    "t5x.models.BaseModel": Symbol("flaxformer.training.models.BaseModel"),
    "t5x.models.BaseTransformerModel": Symbol("flaxformer.training.models.BaseTransformerModel"),
    "t5x.models.DecoderOnlyModel": Symbol("flaxformer.training.models.DecoderOnlyModel"),
    "t5x.models.DecoderParams": Symbol("flaxformer.training.models.DecoderParams"),
    "t5x.models.EncoderDecoderModel": Symbol("flaxformer.training.models.EncoderDecoderModel"),
    "t5x.models.remove_prefix": Symbol("flaxformer.training.models.remove_prefix"),
    "t5x.adafactor.Adafactor": Symbol(
        "flaxformer.training.optimizers.adafactor",
        {
            "factor_map": No("bind logical_factor_rules, which name axes instead of parameters"),
            "max_parameter_scale": No("updates are relative to the parameter's scale without an upper bound"),
            "skip_nan_updates": No("runner.train stops at a loss or gradient that is not finite"),
        },
        uncalled=True,
    ),
    "t5x.adafactor.standard_logical_factor_rules": Symbol(
        "flaxformer.training.optimizers.standard_logical_factor_rules"
    ),
    "t5x.decoding.beam_search": Symbol("flaxformer.decoding.t5x.beam_search"),
    "t5x.decoding.temperature_sample": Symbol("flaxformer.decoding.t5x.temperature_sample"),
    "t5x.losses.SpecialLossNormalizingFactor": Symbol("flaxformer.training.losses.SpecialLossNormalizingFactor"),
    "t5x.losses.compute_weighted_cross_entropy": Symbol("flaxformer.training.losses.compute_weighted_cross_entropy"),
    "t5x.utils.create_learning_rate_scheduler": Symbol("flaxformer.training.schedules.create_learning_rate_scheduler"),
    "t5x.utils.SaveCheckpointConfig": Symbol(
        _RUN,
        {
            "period": "save_every",
            "keep": "keep",
            "dtype": No("parameters are saved as they are; flaxformer convert --dtype casts them"),
            "save_dataset": No("not needed: batches depend on the step alone"),
        },
    ),
    "t5x.utils.DatasetConfig": Symbol(
        _DATA,
        {
            "mixture_or_task_name": "task",
            "pack": "packed",
            "batch_size": No("bind batching.Bucket.rows of flaxformer.data.batching"),
            "module": No("import the module that registers the task in this file"),
            "use_cached": No("seqio reads the task itself; give SeqioBatches.task a cached task object"),
            "use_custom_packing_ops": No("packing has one implementation"),
        },
    ),
    "t5x.trainer.Trainer": Symbol(
        "flaxformer.training.optimizers.adafactor",
        {
            "learning_rate_fn": "learning_rate",
            "num_microbatches": No("bind optimizers.adafactor.accumulate_steps to the number, with smaller batches"),
        },
    ),
    "t5x.train.train": Symbol(
        _RUN,
        {
            "model": "model",
            "train_dataset_cfg": "train_data",
            "train_eval_dataset_cfg": "eval_data",
            "model_dir": "run_dir",
            "total_steps": "steps",
            "eval_steps": "eval_batches",
            "eval_period": "eval_every",
            "stats_period": "log_every",
            "random_seed": "seed",
            "checkpoint_cfg": _ITSELF,
            "infer_eval_dataset_cfg": _INFER,
            "inference_evaluator_cls": _INFER,
            "partitioner": _PARTITIONER,
            "trainer_cls": No("not needed: runner.train is the loop"),
        },
    ),
    "seqio.ByteVocabulary": Symbol("flaxformer.data.vocabularies.ByteVocabulary"),
}
SYMBOLS = {**SYMBOLS, "__main__.train": SYMBOLS["t5x.train.train"]}

# Longest prefix first matched; everything under `t5x` that is nowhere above is listed with the last sentence.
NO_COUNTERPART: Mapping[str, No] = {
    "t5x.adafactor.HParamMap": No("bind optimizers.adafactor's argument to one value for all parameters"),
    "t5x.utils.CheckpointConfig": _ITSELF,
    "t5x.utils.RestoreCheckpointConfig": _RESTORE,
    "t5x.partitioning": _PARTITIONER,
    "t5x.trainer": No("runner.train is the loop: bind its arguments"),
    "t5x.eval": No("evaluate in Python with flaxformer.training.runner.evaluate"),
    "t5x.infer": _INFER,
    "t5x.interactive_model": No("use flaxformer.training.step and flaxformer.decoding.generate in the notebook"),
    "t5x.contrib": No("this version has no counterpart of T5X's contributions"),
    "t5x": No("there is no counterpart: see flaxformer.training, flaxformer.decoding and flaxformer.weights"),
    "__main__": No("bind flaxformer.training.runner.train and start it with flaxformer train"),
    "flax.optim": No("flax has it no more: bind an optimizer of flaxformer.training.optimizers, or of optax"),
    "prompt_tuning": No("train a part of the parameters with optax.masked around an optimizer"),
}

# What `utils.` and the like mean in files that import nothing themselves.
USUAL_IMPORTS: Mapping[str, str] = {
    **{name: f"t5x.{name}" for name in ("adafactor", "decoding", "models", "partitioning", "trainer", "utils")},
    **{f"{name}_script": f"t5x.{name}" for name in ("train", "eval", "infer")},
    **{name: f"flaxformer.components.{name}" for name in ("dense", "embedding", "layer_norm")},
    "dense_attention": "flaxformer.components.attention.dense_attention",
    "relative_position_biases": "flaxformer.components.relative_position_biases",
    "seqio": "seqio",
    "t5_architecture": "flaxformer.architectures.t5.t5_architecture",
}

_OLD_T5 = "flaxformer/t5x/configs/t5"
ARCHITECTURES: Mapping[str, str] = {
    f"{_OLD_T5}/architectures/t5_1_1_flaxformer.gin": "t5_1_1/parts.gin",
    f"{_OLD_T5}/architectures/t5_flaxformer.gin": "t5_1_0/parts.gin",
}
_SIZES = ("small", "base", "large", "xl", "xxl")
MODELS: Mapping[str, str] = {
    **{f"{_OLD_T5}/models/t5_{size}.gin": f"t5_1_0/{size}.gin" for size in ("small", "base", "large", "3B", "11B")},
    **{f"{_OLD_T5}/models/t5_1_1_{size}.gin": f"t5_1_1/{size}.gin" for size in _SIZES},
    **{f"{_OLD_T5}/models/mt5_{size}.gin": f"mt5/{size}.gin" for size in _SIZES},
    **{f"{_OLD_T5}/models/byt5_{size}.gin": f"byt5/{size}.gin" for size in _SIZES},
}
RUNS: Mapping[str, str] = {f"t5x/configs/runs/{name}.gin": name for name in ("pretrain", "finetune")}
FLASH_ATTENTION = "flash_attention.gin"

NO_FILE: Mapping[str, No] = {
    "flaxformer/t5x/checkpointing.gin": No("not needed: flaxformer.weights.t5x reads and remaps the save format"),
    "flaxformer/t5x/configs": No("this version ships no such family: keep a copy of the old file, and migrate it too"),
    "t5x/configs/runs/eval.gin": NO_COUNTERPART["t5x.eval"],
    "t5x/configs/runs/infer.gin": _INFER,
    "t5x/examples/t5/t5_1_1": No("its model is not flaxformer's: include t5_1_1/<size>.gin, and bind the macros"),
    "t5x": No("T5X's file has no counterpart here"),
}

# Macros of T5X's run files that nothing reads here.
RUN_MACROS: Mapping[str, No] = {
    "EVALUATOR_NUM_EXAMPLES": _INFER,
    "EVALUATOR_USE_MEMORY_CACHE": _INFER,
    "INITIAL_CHECKPOINT_PATH": _RESTORE,
    "JSON_WRITE_N_RESULTS": _INFER,
    "MIXTURE_OR_TASK_MODULE": No("import the module that registers the task in this file"),
    "RANDOM_SEED": No("bind runner.train.seed, and seqio_bridge.SeqioBatches.seed for the data"),
    "TRAIN_STEPS_RELATIVE": No("bind TRAIN_STEPS, which counts from 0"),
    "USE_CACHED_TASKS": No("seqio reads the task itself"),
    "USE_HARDWARE_RNG": No("choose JAX's generator with jax_default_prng_impl"),
}
