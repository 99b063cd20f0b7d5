"""Gin files written for T5X come out in our names, with their comments and order; what cannot is listed."""

import ast
import importlib
import sys
import types

import pytest

from flaxformer import cli, configs
from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.migration import HEADING, migrate
from flaxformer.configs.old_names import ARCHITECTURES, MODELS, NO_COUNTERPART, SYMBOLS, USUAL_IMPORTS
from flaxformer.data import vocabularies
from flaxformer.training import runner
from flaxformer.weights.restoring import abstract_params
from tests.configs import old_architecture
from tests.golden import compare
from tests.golden.build import load

HEAD = "from __gin__ import dynamic_registration\n"

# A user's model file: own architecture include, T5X's optimizer and model.
MODEL = """\
# Our model.
from __gin__ import dynamic_registration

import seqio
from t5x import adafactor
from t5x import models

ARCHITECTURE = %gin.REQUIRED
include 'flaxformer/t5x/configs/t5/architectures/t5_1_1_flaxformer.gin'

# Vocabulary (bytes)
VOCABULARY = @seqio.ByteVocabulary()
NUM_EMBEDDINGS = 384  # vocab size rounded up

# ------------------- Optimizer -------------------
OPTIMIZER = @adafactor.Adafactor()
adafactor.Adafactor:
  decay_rate = 0.8
  step_offset = 0

# ------------------- Model -----------------------
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = %ARCHITECTURE  # provided by the include
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
  z_loss = 0.0001

NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
NUM_HEADS = 2
HEAD_DIM = 4
EMBED_DIM = 8
MLP_DIM = 16
"""
MODEL_NEW = (
    MODEL.replace("import seqio\n", "from flaxformer.data import vocabularies\n")
    .replace("from t5x import adafactor", "from flaxformer.training import optimizers")
    .replace("from t5x import models", "from flaxformer.training import models")
    .replace("flaxformer/t5x/configs/t5/architectures/t5_1_1_flaxformer.gin", "t5_1_1/parts.gin")
    .replace("seqio.ByteVocabulary", "vocabularies.ByteVocabulary")
    .replace("@adafactor.Adafactor()", "@optimizers.adafactor")
    .replace("adafactor.Adafactor:", "optimizers.adafactor:")
)


def new(text):
    """The migrated text, which must come out of a second migration unchanged."""
    migrated = migrate(text)
    again = migrate(migrated.text)
    assert again.text == migrated.text and not again.notes
    return migrated


def test_a_model_file_changes_in_its_names_alone_and_builds(tmp_path):
    migrated = new(MODEL)
    assert migrated.text == MODEL_NEW and not migrated.notes
    path = tmp_path / "model.gin"
    path.write_text(migrated.text)
    model = configs.load(str(path))
    assert type(model).__name__ == "EncoderDecoderModel" and model.module.dtype == "bfloat16"
    assert model.output_vocabulary.vocab_size == 259


@pytest.mark.parametrize(
    "text", [old_architecture.T5_1_1, "", "# only a comment\n", "A = 1", "A = [\n  1,  # one\n]\n"]
)
def test_a_file_without_old_names_comes_out_as_it_went_in(text):
    assert migrate(text) == (text, [], [])


@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1", "mt5", "byt5"])
def test_an_included_model_file_becomes_the_shipped_one_and_what_it_defined_besides(tmp_path, monkeypatch, family):
    old = next(path for path, shipped in MODELS.items() if shipped == f"{family}/small.gin")
    migrated = new(f"include '{old}'\n\nDROPOUT_RATE = 0.1\nZ_LOSS = 0.0\n")
    assert f"include '{family}/small.gin'" in migrated.text and not migrated.notes
    seqio = types.ModuleType("seqio")
    vars(seqio)["SentencePieceVocabulary"] = lambda sentencepiece_model_file: sentencepiece_model_file
    monkeypatch.setitem(sys.modules, "seqio", seqio)
    path = tmp_path / "run.gin"
    path.write_text(migrated.text)
    model = configs.load(str(path))
    configuration = configs.read(str(path))
    assert configuration.evaluate(configuration.macros["Z_LOSS"].value) == 0.0
    if family == "byt5":
        assert type(model.output_vocabulary) is vocabularies.ByteVocabulary and "seqio" not in migrated.text
    else:
        name = "mc4.250000.100extra" if family == "mt5" else "cc_all.32000.100extra"
        assert model.output_vocabulary == f"gs://t5-data/vocabs/{name}/sentencepiece.model"


def test_every_file_and_symbol_of_the_tables_exists():
    for shipped in (*ARCHITECTURES.values(), *MODELS.values()):
        assert (configs.folder() / shipped).is_file()
    for symbol in SYMBOLS.values():
        module, _, name = symbol.name.rpartition(".")
        assert hasattr(importlib.import_module(module), name), symbol.name
    for module in USUAL_IMPORTS.values():
        if module.startswith("flaxformer"):
            importlib.import_module(module)


# What a run file binds, one statement each, and what becomes of it.
RUN_HEAD = HEAD + "".join(
    f"from t5x import {name}\n" for name in ("adafactor", "partitioning", "trainer", "train as train_script", "utils")
)


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ("utils.SaveCheckpointConfig.period = 500", "runner.train.save_every = 500"),
        ("trainer.Trainer.learning_rate_fn = @utils.create_learning_rate_scheduler()",
         "optimizers.adafactor.learning_rate = @schedules.create_learning_rate_scheduler()"),
        ("train/utils.DatasetConfig.pack = False", "train/seqio_bridge.SeqioBatches.packed = False"),
        ("train_script.train.model = %MODEL", "runner.train.model = %ARCHITECTURE"),
        ("train_script.train.train_dataset_cfg = @train/utils.DatasetConfig()",
         "runner.train.train_data = @train/seqio_bridge.SeqioBatches()"),
        ("A = [@adafactor.Adafactor(), %B]", "A = [@optimizers.adafactor, %B]"),
        ("A = {'x': @adafactor.standard_logical_factor_rules()}",
         "A = {'x': @optimizers.standard_logical_factor_rules()}"),
        ("A = 'utils.DatasetConfig'  # utils.DatasetConfig", "A = 'utils.DatasetConfig'  # utils.DatasetConfig"),
    ],
)  # fmt: skip
def test_bindings_are_renamed_wherever_names_stand_but_in_strings_and_comments(old, expected):
    assert expected in new(RUN_HEAD + old).text.split("\n")


@pytest.mark.parametrize(
    ("old", "reason"),
    [
        ("utils.RestoreCheckpointConfig.path = 'x'", "flaxformer.weights.t5x.restore_params"),
        ("train_script.train.checkpoint_cfg = @utils.CheckpointConfig()", "saves every save_every steps"),
        ("train/utils.DatasetConfig.batch_size = 8", "bind batching.Bucket.rows"),
        ("partitioning.PjitPartitioner.num_partitions = 1", "no partitioner to bind"),
        ("adafactor.Adafactor.factor_map = @adafactor.HParamMap()", "bind logical_factor_rules"),
        ("trainer.Trainer.weight_metrics_computer = None", "optimizers.adafactor has no such parameter"),
        ("A = @utils.no_such_thing", "there is no counterpart"),
        ("A = (\n    @utils.no_such_thing,  # why\n)", "there is no counterpart"),
    ],
)
def test_what_has_no_counterpart_becomes_a_comment_and_is_listed_with_what_to_write(old, reason):
    migrated = new(RUN_HEAD + "BEFORE = 1\n" + old + "\nAFTER = 2\n")
    kept = "\n".join(f"# {line}" for line in old.split("\n"))
    assert f"BEFORE = 1\n{kept}\nAFTER = 2\n" in migrated.text
    first, *listed = migrated.text.split("\n\n")[0].split("\n")
    assert first == HEADING and listed == [f"# * {note}" for note in migrated.notes]
    assert any(note.line == 8 and reason in note.why for note in migrated.notes)


def test_a_block_keeps_the_lines_that_have_a_counterpart():
    old = RUN_HEAD + "utils.SaveCheckpointConfig:\n  period = 10  # often\n  dtype = 'float32'\n  keep = None\n"
    assert "runner.train:\n  save_every = 10  # often\n#   dtype = 'float32'\n  keep = None\n" in new(old).text
    nothing = RUN_HEAD + "utils.SaveCheckpointConfig:\n  dtype = 'float32'\n\nA = 1\n"
    assert "# utils.SaveCheckpointConfig:\n#   dtype = 'float32'\n\nA = 1\n" in new(nothing).text


def test_imports_are_replaced_where_they_stand_and_their_comments_stay():
    old = HEAD + "from t5x import utils  # schedules\nfrom t5x import models\nimport my.models as mine\n"
    old += "A = @utils.create_learning_rate_scheduler\n"
    assert new(old).text == HEAD + (
        "from flaxformer.training import schedules  # schedules\nimport my.models as mine\n"
        "A = @schedules.create_learning_rate_scheduler\n"
    )


def test_a_name_that_is_taken_is_not_taken_again():
    old = HEAD + "from mine import optimizers\nimport t5x.adafactor\nA = @t5x.adafactor.Adafactor\n"
    assert new(old).text == HEAD + (
        "from mine import optimizers\nfrom flaxformer.training import optimizers as flaxformer_optimizers\n"
        "A = @flaxformer_optimizers.adafactor\n"
    )
    byt5 = HEAD + "from mine import models\ninclude 'flaxformer/t5x/configs/t5/models/byt5_small.gin'\n"
    text = new(byt5).text
    assert "from flaxformer.training import models as flaxformer_models\n" in text
    assert "MODEL = @flaxformer_models.EncoderDecoderModel()" in text


def test_a_module_that_is_imported_already_is_not_imported_twice():
    old = (
        HEAD
        + "from flaxformer.training import optimizers as o\nfrom t5x import adafactor\nA = @adafactor.Adafactor()\n"
    )
    assert new(old).text == HEAD + "from flaxformer.training import optimizers as o\nA = @o.adafactor\n"


def test_a_file_without_imports_gets_those_that_its_names_mean():
    migrated = new("# Mine.\nadafactor.Adafactor.decay_rate = 0.9\ndense.MlpBlock.use_bias = True\n")
    assert migrated.text == (
        "# Mine.\nfrom __gin__ import dynamic_registration\nfrom flaxformer.components import dense\n"
        "from flaxformer.training import optimizers\n\n"
        "optimizers.adafactor.decay_rate = 0.9\ndense.MlpBlock.use_bias = True\n"
    )


def test_what_stays_seqios_is_advised_not_listed():
    migrated = new(HEAD + "import seqio\nV = @seqio.SentencePieceVocabulary()\nW = @seqio.ByteVocabulary()\n")
    assert migrated.text == HEAD + (
        "import seqio\nfrom flaxformer.data import vocabularies\n"
        "V = @seqio.SentencePieceVocabulary()\nW = @vocabularies.ByteVocabulary()\n"
    )
    assert migrated.advice == ["seqio.SentencePieceVocabulary stays seqio's: pip install 'flaxformer[seqio]'"]
    assert not migrated.notes


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("flaxformer/t5x/checkpointing.gin", "reads and remaps the save format"),
        ("flaxformer/t5x/configs/moe/models/switch_base.gin", "ships no such family"),
        ("google_research/flaxformer/t5x/configs/longt5/models/longt5_1_1_base.gin", "ships no such family"),
        ("t5x/examples/t5/t5_1_1/small.gin", "its model is not flaxformer's"),
        ("t5x/configs/runs/eval.gin", "evaluate in Python"),
        ("t5x/configs/runs/export.gin", "T5X's file has no counterpart"),
    ],
)
def test_includes_without_a_counterpart_are_listed(path, reason):
    migrated = new(f"include '{path}'\nA = 1\n")
    assert migrated.text.endswith(f"\n\n# include '{path}'\nA = 1\n")
    assert [(note.line, note.what) for note in migrated.notes] == [(1, repr(path))]
    assert reason in migrated.notes[0].why


def test_a_users_own_include_stays():
    assert migrate("include 'mine/t5x/other.gin'\n").text == "include 'mine/t5x/other.gin'\n"


def test_a_module_that_this_version_lacks_is_listed():
    old = HEAD + "from flaxformer.architectures.none_such import parts\nparts.Layer.size = 3\n"
    migrated = new(old)
    assert "# from flaxformer.architectures.none_such import parts\n# parts.Layer.size = 3\n" in migrated.text
    assert {note.why for note in migrated.notes} == {"this version has no module flaxformer.architectures.none_such"}


def test_flash_attention_is_bound_in_place():
    old = HEAD + "include 'flaxformer/t5x/configs/t5/architectures/flash_attention.gin'\n"
    text = new(old).text
    name = "attention_fn = @memory_efficient_attention.dot_product_attention_multi"
    assert f"MultiHeadDotProductAttention.{name}head\n" in text and f"MultiQueryDotProductAttention.{name}query" in text


@pytest.mark.parametrize(
    ("run", "lengths", "row"),
    [
        ("pretrain", {"inputs": 512, "targets": 114}, "(512, 114)"),
        ("finetune", {"targets": 64, "inputs": 32}, "(32, 64)"),
        ("pretrain", {"targets": 128}, "(128,)"),
    ],
)
def test_a_run_file_becomes_a_run_of_ours(tmp_path, run, lengths, row):
    old = "include 'flaxformer/t5x/configs/t5/models/byt5_small.gin'\n"
    old += f"include 't5x/configs/runs/{run}.gin'\n\n# My task.\nMIXTURE_OR_TASK_NAME = 'mine'\nTRAIN_STEPS = 10\n"
    old += f"MODEL_DIR = 'runs/1'\nTASK_FEATURE_LENGTHS = {lengths}\nBATCH_SIZE = 8\nRANDOM_SEED = 0\n"
    migrated = new(old)
    assert f"lengths = {row}" in migrated.text and "# RANDOM_SEED = 0" in migrated.text
    expected = {"RANDOM_SEED"} | ({"INITIAL_CHECKPOINT_PATH", "TRAIN_STEPS"} if run == "finetune" else set())
    assert {note.what for note in migrated.notes} == expected
    path = tmp_path / "run.gin"
    path.write_text(migrated.text)
    configuration = configs.read(str(path))
    bound = {name: b.value for name, b in configuration.bound(runner.train, ()).items()}
    data = configuration.evaluate(bound["train_data"])
    assert (data.task, data.packed, data.bucket.rows, data.bucket.lengths) == ("mine", True, 8, ast.literal_eval(row))
    held_out = configuration.evaluate(bound["eval_data"])
    assert (held_out.split, held_out.seed, held_out.shuffle) == ("validation", 42, False)
    assert configuration.evaluate(bound["steps"]) == 10
    assert configuration.evaluate(bound["save_every"]) == (1000 if run == "pretrain" else 5000)
    assert configuration.evaluate(bound["loss"]).z_loss == 0.0001
    assert configuration.evaluate(bound["optimizer"])() is not None


def test_lengths_that_are_not_written_out_are_listed():
    migrated = new("include 't5x/configs/runs/pretrain.gin'\nTASK_FEATURE_LENGTHS = %LENGTHS\n")
    assert "lengths = %gin.REQUIRED" in migrated.text
    assert [note.what for note in migrated.notes] == ["batching.Bucket.lengths"]


def test_every_reason_says_something():
    assert all(len(why) > 20 for why in NO_COUNTERPART.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A = (1,\n", "my.gin is not gin .*expected statements"),
        ("A = 1\n  a = 1\n", "my.gin:2 is not gin: an indented line belongs to no block"),
        ("  a = 1\n", "my.gin:1 is not gin: an indented line belongs to no block"),
    ],
)
def test_what_is_not_gin_is_refused(text, message):
    with pytest.raises(ConfigurationError, match=message):
        migrate(text, "my.gin")


def test_the_command_prints_the_file_and_lists_on_standard_error(tmp_path, capsys):
    path = tmp_path / "old.gin"
    path.write_text(HEAD + "from t5x import utils\nimport seqio\nA = @utils.nothing\nV = @seqio.Feature\n")
    assert cli.main(["migrate", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == migrate(path.read_text()).text
    assert f"{path}:4: not mapped: utils.nothing: there is no counterpart" in printed.err
    assert "seqio.Feature stays seqio's" in printed.err
    assert cli.main(["migrate", str(tmp_path / "none.gin")]) == 2
    assert "cannot read" in capsys.readouterr().err


def _check_recorded_tree(tmp_path, family, size):
    path = tmp_path / "model.gin"
    text = old_architecture.T5_1_1 if family == "t5_1_1" else old_architecture.T5_1_0
    macros = zip(old_architecture.MACROS, old_architecture.SIZES[family, size], strict=True)
    path.write_text(text + "".join(f"{name} = {value}\n" for name, value in macros))
    model = configs.load(str(path))
    assert compare.shapes(abstract_params(model)) == load(f"paramtree_{family}_{size}").description["param_tree"]


def test_an_old_architecture_file_builds_the_recorded_tree_unchanged(tmp_path):
    _check_recorded_tree(tmp_path, "t5_1_1", "small")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), [key for key in old_architecture.SIZES if key != ("t5_1_1", "small")])
def test_an_old_architecture_file_builds_the_recorded_tree_at_every_size(tmp_path, family, size):
    _check_recorded_tree(tmp_path, family, size)


@pytest.mark.parametrize("old", ARCHITECTURES)
def test_old_paths_of_architecture_files_are_found_as_they_are(tmp_path, old):
    path = tmp_path / "size.gin"
    path.write_text(f"include '{old}'\n")
    assert [file.name for file in configs.read(str(path)).files][1] == "parts.gin"
