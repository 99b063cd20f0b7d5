"""What T5X's and google/flaxformer's gin files defined beyond the shipped ones, as gin text in our names."""

from __future__ import annotations

from collections.abc import Mapping

_MODEL = """\
# What {old} defined beside the sizes.
Z_LOSS = 0.0001
LABEL_SMOOTHING = 0.0
LOSS_NORMALIZING_FACTOR = None
{vocabulary}
OPTIMIZER = @optimizers.adafactor
optimizers.adafactor:
  decay_rate = 0.8
  step_offset = 0
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = %ARCHITECTURE
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
  z_loss = %Z_LOSS
  label_smoothing = %LABEL_SMOOTHING
  loss_normalizing_factor = %LOSS_NORMALIZING_FACTOR
"""
_MODEL_IMPORTS = ("flaxformer.training.models", "flaxformer.training.optimizers")
_SENTENCE_PIECE = """\
VOCABULARY = @seqio.SentencePieceVocabulary()
seqio.SentencePieceVocabulary.sentencepiece_model_file = 'gs://t5-data/vocabs/{name}/sentencepiece.model'"""

_RUN = """\
# What {old} defined.
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
TASK_FEATURE_LENGTHS = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
MODEL_DIR = %gin.REQUIRED
BATCH_SIZE = 128
{macros}
runner.train:
  model = %ARCHITECTURE
  train_data = @train/seqio_bridge.SeqioBatches()
  eval_data = @train_eval/seqio_bridge.SeqioBatches()
  optimizer = @optimizers.adafactor
{loss}  steps = %TRAIN_STEPS
  run_dir = %MODEL_DIR
  save_every = {save_every}
  keep = None
  eval_every = {eval_every}
  eval_batches = {eval_batches}
{loss_bindings}optimizers.adafactor.learning_rate = @schedules.create_learning_rate_scheduler()
schedules.create_learning_rate_scheduler:
  factors = {factors!r}
  base_learning_rate = {rate}
  warmup_steps = {warmup}
seqio_bridge.SeqioBatches:
  task = %MIXTURE_OR_TASK_NAME
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  converter = @features.{converter}()
  bucket = @batching.Bucket()
  packed = True
{shuffle}train_eval/seqio_bridge.SeqioBatches:
  split = 'validation'
  shuffle = False
  seed = 42
batching.Bucket:
  lengths = {lengths}
  rows = %BATCH_SIZE
"""
_RUN_IMPORTS = (
    "flaxformer.data.batching",
    "flaxformer.data.features",
    "flaxformer.data.seqio_bridge",
    "flaxformer.training.optimizers",
    "flaxformer.training.runner",
    "flaxformer.training.schedules",
)
_LOSS_IMPORT = "flaxformer.training.step"
_LOSS_BINDINGS = """\
step.LossConfig:
  z_loss = %Z_LOSS
  label_smoothing = %LABEL_SMOOTHING
  loss_normalizing_factor = %LOSS_NORMALIZING_FACTOR
"""
_RUNS = {
    "pretrain": {
        "save_every": 1000,
        "factors": "constant * rsqrt_decay",
        "rate": 1.0,
        "warmup": 10000,
        "eval_every": 1000,
        "eval_batches": 20,
        "macros": "SHUFFLE_TRAIN_EXAMPLES = True",
        "shuffle": "train/seqio_bridge.SeqioBatches.shuffle = %SHUFFLE_TRAIN_EXAMPLES\n",
    },
    "finetune": {
        "save_every": 5000,
        "factors": "constant",
        "rate": 0.001,
        "warmup": 1000,
        "eval_every": "%EVAL_PERIOD",
        "eval_batches": "%EVAL_STEPS",
        "macros": "DROPOUT_RATE = 0.1\nEVAL_STEPS = 20\nEVAL_PERIOD = 1000",
        "shuffle": "",
    },
}

_ATTENTION = "flaxformer.components.attention"
FLASH_ATTENTION = (
    """\
dense_attention.MultiHeadDotProductAttention.attention_fn = @memory_efficient_attention.{module}_multihead
dense_attention.MultiQueryDotProductAttention.attention_fn = @memory_efficient_attention.{module}_multiquery
""".format(module="dot_product_attention"),
    (f"{_ATTENTION}.dense_attention", f"{_ATTENTION}.memory_efficient_attention"),
)


def model(old: str, new: str) -> tuple[str, tuple[str, ...]]:
    """Vocabulary, optimizer and model of an old model file, as gin text, and the modules it imports.

    Args:
      old: its path.
      new: the shipped file with its architecture.
    """
    family = new.partition("/")[0]
    if family == "byt5":
        vocabulary, imports = "VOCABULARY = @vocabularies.ByteVocabulary()", ("flaxformer.data.vocabularies",)
    else:
        name = "mc4.250000.100extra" if family == "mt5" else "cc_all.32000.100extra"
        vocabulary, imports = _SENTENCE_PIECE.format(name=name), ("seqio",)
    return _MODEL.format(old=old, vocabulary=vocabulary), (*imports, *_MODEL_IMPORTS)


def run(old: str, name: str, lengths: Mapping[str, int] | None, with_loss: bool) -> tuple[str, tuple[str, ...]]:
    """The training run of one of T5X's run files, as gin text, and the modules it imports.

    Args:
      old: its path.
      name: of the run file.
      lengths: the task's feature lengths where they are known, else they stay required.
      with_loss: whether the model's loss macros are defined.
    """
    decoder_only = lengths is not None and "inputs" not in lengths
    text = _RUN.format(
        old=old,
        loss="  loss = @step.LossConfig()\n" if with_loss else "",
        loss_bindings=_LOSS_BINDINGS if with_loss else "",
        converter="DecoderOnlyFeatures" if decoder_only else "EncoderDecoderFeatures",
        lengths=_row_lengths(lengths) if lengths else "%gin.REQUIRED",
        **_RUNS[name],
    )
    return text, (*_RUN_IMPORTS, *([_LOSS_IMPORT] if with_loss else []))


def _row_lengths(lengths: Mapping[str, int]) -> tuple[int, ...]:
    """(encoder length, decoder length), or one length for inputs and targets together."""
    return tuple(lengths[name] for name in ("inputs", "targets") if name in lengths)
