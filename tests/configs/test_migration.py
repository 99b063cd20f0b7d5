"""Gin files written for T5X come out in our names, with their comments and order; what cannot is listed."""

import importlib

import pytest

from flaxformer import cli, configs
from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.migration import HEADING, migrate
from flaxformer.configs.old_names import FILES, MODULES, NO_COUNTERPART, NO_FILE, USUAL_IMPORTS
from flaxformer.data import vocabularies
from flaxformer.t5x.train import train
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
    MODEL.replace("import seqio\n", "from flaxformer.t5x import vocabularies\n")
    .replace("from t5x import adafactor", "from flaxformer.t5x import adafactor")
    .replace("from t5x import models", "from flaxformer.training import models")
    .replace("flaxformer/t5x/configs/t5/architectures/t5_1_1_flaxformer.gin", "t5_1_1/parts.gin")
    .replace("seqio.ByteVocabulary", "vocabularies.ByteVocabulary")
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


@pytest.mark.parametrize(("old", "name"), [("t5_small", "t5"), ("t5_1_1_small", "t5"), ("mt5_small", "mt5")])
def test_an_included_model_file_becomes_the_shipped_one_with_all_it_defined(tmp_path, old, name):
    old = f"include 'flaxformer/t5x/configs/t5/models/{old}.gin'\n\nDROPOUT_RATE = 0.1\nZ_LOSS = 0.0\n"
    migrated = new(old)
    assert migrated.text == old.replace("flaxformer/t5x/configs/t5/models/", "t5x/models/") and not migrated.notes
    path = tmp_path / "run.gin"
    path.write_text(migrated.text)
    model = configs.load(str(path))
    assert model._z_loss == 0.0 and model.optimizer_def.decay_rate == 0.8
    assert model.input_vocabulary.eos_id == 1
    vocabulary = {"t5": "cc_all.32000.100extra", "mt5": "mc4.250000.100extra"}[name]
    assert model.output_vocabulary.sentencepiece_model_file == f"gs://t5-data/vocabs/{vocabulary}/sentencepiece.model"


def test_bytes_need_no_vocabulary_file():
    model = configs.load("t5x/models/byt5_small")
    assert type(model.output_vocabulary) is vocabularies.ByteVocabulary


def test_every_file_and_name_of_the_tables_exists():
    assert all((configs.folder() / shipped).is_file() for shipped in FILES.values())
    for module in MODULES.values():
        names = vars(importlib.import_module(module.name))
        assert set(module.names) <= set(names), module.name
        for parameter in module.parameters:
            assert parameter.partition(".")[0] in module.names
    for name in USUAL_IMPORTS.values():
        if name.startswith("flaxformer"):
            importlib.import_module(name)


def test_every_old_path_of_a_shipped_file_is_found_as_it_is(tmp_path):
    for number, (old, shipped) in enumerate(FILES.items()):
        path = tmp_path / f"{number}.gin"
        path.write_text(f"include 'google_research/{old}'\n" if old.startswith("flaxformer") else f"include '{old}'\n")
        assert configs.read(str(path)).files[1] == configs.folder() / shipped


# What a run file binds, one statement each, and what becomes of it.
RUN_HEAD = HEAD + "".join(
    f"from t5x import {name}\n" for name in ("adafactor", "partitioning", "trainer", "train as train_script", "utils")
)


@pytest.mark.parametrize(
    "old",
    [
        "utils.SaveCheckpointConfig.period = 500",
        "utils.RestoreCheckpointConfig.assignment_map = ((r'target/a', 'target/b'), ('x', None))",
        "trainer.Trainer.learning_rate_fn = @utils.create_learning_rate_scheduler()",
        "train/utils.DatasetConfig.pack = False",
        "train_script.train.model = %MODEL",
        "train_script.train.train_dataset_cfg = @train/utils.DatasetConfig()",
        "adafactor.HParamMap.rules = ((('.*'), None),)",
        "partitioning.PjitPartitioner.model_parallel_submesh = (1, 1, 1, 1)",
        "A = [@adafactor.Adafactor(), %B, 'utils.x']  # utils.y",
        "A = {'x': @partitioning.standard_logical_axis_rules()}",
    ],
)
def test_bindings_of_what_a_run_file_configures_stay_as_they_are(old):
    migrated = new(RUN_HEAD + old)
    assert migrated.text.split("\n")[-1] == old and not migrated.notes


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ("import t5x.utils\nA = @t5x.utils.DatasetConfig",
         "from flaxformer.t5x import utils\nA = @utils.DatasetConfig"),
        ("import t5x.models as m\nA = @m.DecoderOnlyModel",
         "from flaxformer.training import models as m\nA = @m.DecoderOnlyModel"),
        ("from t5x import decoding\nA = @decoding.beam_search",
         "from flaxformer.decoding import t5x as decoding\nA = @decoding.beam_search"),
        ("import __main__ as train_script\ntrain_script.train.total_steps = 3",
         "from flaxformer.t5x import train as train_script\ntrain_script.train.total_steps = 3"),
    ],
)  # fmt: skip
def test_imports_are_replaced_and_names_stay_as_short_as_they_can(old, expected):
    assert new(HEAD + old).text == HEAD + expected


@pytest.mark.parametrize(
    ("old", "reason"),
    [
        ("train_script.train.infer_eval_dataset_cfg = @infer_eval/utils.DatasetConfig()", "nothing is decoded during"),
        ("trainer.Trainer.no_such = None", "trainer.Trainer has no such parameter"),
        ("trainer.WeightMetricsComputer.x = None", "runner.train, which computes a batch at once"),
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
    old = RUN_HEAD + "utils.SaveCheckpointConfig:\n  period = 10  # often\n  fancy = 'float32'\n  keep = None\n"
    assert (
        "utils.SaveCheckpointConfig:\n  period = 10  # often\n#   fancy = 'float32'\n  keep = None\n" in new(old).text
    )
    nothing = RUN_HEAD + "utils.SaveCheckpointConfig:\n  fancy = 'float32'\n\nA = 1\n"
    assert "# utils.SaveCheckpointConfig:\n#   fancy = 'float32'\n\nA = 1\n" in new(nothing).text


def test_imports_are_replaced_where_they_stand_and_their_comments_stay():
    old = HEAD + "from t5x import utils  # schedules\nfrom t5x import models\nimport my.models as mine\n"
    old += "A = @utils.create_learning_rate_scheduler\n"
    assert new(old).text == HEAD + (
        "from flaxformer.t5x import utils  # schedules\nimport my.models as mine\n"
        "A = @utils.create_learning_rate_scheduler\n"
    )


def test_a_name_that_is_taken_is_not_taken_again():
    old = HEAD + "from mine import adafactor\nimport t5x.adafactor\nA = @t5x.adafactor.Adafactor\n"
    assert new(old).text == HEAD + (
        "from mine import adafactor\nfrom flaxformer.t5x import adafactor as flaxformer_adafactor\n"
        "A = @flaxformer_adafactor.Adafactor\n"
    )


def test_a_module_that_is_imported_already_is_not_imported_twice():
    old = HEAD + "from flaxformer.t5x import adafactor as o\nfrom t5x import adafactor\nA = @adafactor.Adafactor()\n"
    assert new(old).text == HEAD + "from flaxformer.t5x import adafactor as o\nA = @o.Adafactor()\n"


def test_a_file_without_imports_gets_those_that_its_names_mean():
    migrated = new("# Mine.\nadafactor.Adafactor.decay_rate = 0.9\ndense.MlpBlock.use_bias = True\n")
    assert migrated.text == (
        "# Mine.\nfrom __gin__ import dynamic_registration\nfrom flaxformer.components import dense\n"
        "from flaxformer.t5x import adafactor\n\n"
        "adafactor.Adafactor.decay_rate = 0.9\ndense.MlpBlock.use_bias = True\n"
    )
    script = new("train_script.train.eval_steps = 3\n").text
    assert "from flaxformer.t5x import train as train_script\n" in script and script.endswith("train.eval_steps = 3\n")


def test_what_stays_seqios_is_advised_not_listed():
    migrated = new(HEAD + "import seqio\nV = @seqio.UnigramVocabulary()\nW = @seqio.ByteVocabulary()\n")
    assert migrated.text == HEAD + (
        "import seqio\nfrom flaxformer.t5x import vocabularies\n"
        "V = @seqio.UnigramVocabulary()\nW = @vocabularies.ByteVocabulary()\n"
    )
    assert migrated.advice == ["seqio.UnigramVocabulary stays seqio's: pip install 'flaxformer[seqio]'"]
    assert not migrated.notes


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("flaxformer/t5x/configs/moe/models/switch_base.gin", "ships no such family"),
        ("google_research/flaxformer/t5x/configs/longt5/models/longt5_1_1_base.gin", "include longt5/base.gin"),
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


def test_where_longt5_keeps_its_biases_is_what_the_note_says():
    (note,) = new("include 'flaxformer/t5x/configs/longt5/models/longt5_1_1_transient_global_base.gin'\n").notes
    choices = ["ENCODER_ATTENTION = %TRANSIENT_GLOBAL", "ENCODER_BIASES = @transient_global.TokenAndGlobalBiases"]
    ours = {parameter.name for parameter in configs.explain("longt5/tiny", choices, length=8).parameters}
    (name,) = {name for name in ours if "global" in name}
    assert note.why.endswith(f"encoder/side_relpos_bias/rel_embedding, here {name}")


def test_a_users_own_include_stays():
    assert migrate("include 'mine/t5x/other.gin'\n").text == "include 'mine/t5x/other.gin'\n"


def test_a_module_that_this_version_lacks_is_listed():
    old = HEAD + "from flaxformer.architectures.none_such import parts\nparts.Layer.size = 3\n"
    migrated = new(old)
    assert "# from flaxformer.architectures.none_such import parts\n# parts.Layer.size = 3\n" in migrated.text
    assert {note.why for note in migrated.notes} == {"this version has no module flaxformer.architectures.none_such"}


OLD_RUN = """\
include 'flaxformer/t5x/configs/t5/models/byt5_small.gin'
include 't5x/configs/runs/{run}.gin'

# My task.
MIXTURE_OR_TASK_NAME = 'mine'
TASK_FEATURE_LENGTHS = {{'inputs': 512, 'targets': 114}}
TRAIN_STEPS = 10
MODEL_DIR = 'runs/1'
BATCH_SIZE = 8
RANDOM_SEED = 3
LABEL_SMOOTHING = 0.1
INITIAL_CHECKPOINT_PATH = 'models/byt5'
train/utils.DatasetConfig.pack = False
utils.SaveCheckpointConfig.keep = 5
"""


@pytest.mark.parametrize("run", ["pretrain", "finetune"])
@pytest.mark.parametrize("how", ["as it is", "migrated"])
def test_the_overrides_of_an_old_run_file_apply(tmp_path, monkeypatch, run, how):
    text = OLD_RUN.format(run=run)
    if how == "migrated":
        migrated = new(text)
        assert not migrated.notes and f"include 't5x/runs/{run}.gin'" in migrated.text
        text = migrated.text
    path = tmp_path / "run.gin"
    path.write_text(text)
    calls = []
    monkeypatch.setattr(runner, "train", lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setattr("flaxformer.training.initial.InitialCheckpoint.steps_done", lambda self: 4)
    configs.read(str(path)).configured(train)()
    ((module, data, held_out), options) = calls[0]
    assert type(module).__name__ == "EncoderDecoder"
    assert (data.task, data.packed, data.bucket.rows, data.bucket.lengths) == ("mine", False, 8, (512, 114))
    assert (data.split, data.shuffle, data.seed) == ("train", True, 3)
    assert (held_out.split, held_out.seed, held_out.shuffle, held_out.packed) == ("validation", 42, False, True)
    assert (options["loss"].z_loss, options["loss"].label_smoothing) == (0.0001, 0.1)
    assert (options["eval_every"], options["eval_batches"], options["keep"], options["run_dir"]) == (
        1000,
        20,
        5,
        "runs/1",
    )
    tuned = run == "finetune"
    assert (options["save_every"], options["steps"]) == ((5000, 6) if tuned else (1000, 10))
    assert (options["init_from"] and options["init_from"].path) == ("models/byt5" if tuned else None)
    rate = options["optimizer"].args[0]
    assert float(rate(20_000)) == pytest.approx(0.001 if tuned else 20_000**-0.5, rel=1e-5)
    assert configs.read(str(path)).macros["DROPOUT_RATE"].value == (0.1 if tuned else 0.0)


def test_the_command_line_starts_such_a_run(tmp_path, monkeypatch):
    path = tmp_path / "run.gin"
    path.write_text(OLD_RUN.format(run="pretrain"))
    calls = []
    monkeypatch.setattr(runner, "train", lambda *arguments, **options: calls.append(options))
    folder = tmp_path / "mine"
    flags = [f"--gin_file={path}", f"--gin.MODEL_DIR='{folder}'", "--gin.utils.SaveCheckpointConfig.period=7"]
    assert cli.main(["train", *flags]) == 0
    assert calls[0]["run_dir"] == str(folder) and calls[0]["save_every"] == 7
    assert "SaveCheckpointConfig.period=7" in (folder / "config.gin").read_text().replace(" = ", "=")


def test_the_save_format_and_flash_attention_may_be_included(tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(
        OLD_RUN.format(run="finetune")
        + "include 'flaxformer/t5x/checkpointing.gin'\n"
        + "include 'flaxformer/t5x/configs/t5/architectures/flash_attention.gin'\n"
    )
    configuration = configs.read(str(path))
    config = configuration.evaluate(configuration.bound(train, ())["checkpoint_cfg"].value)
    hooks = [*config.save.state_transformation_fns, *config.restore.state_transformation_fns]
    assert [hook.__name__ for hook in hooks] == ["to_save_format", "from_save_format"]
    attention = configuration.build("ARCHITECTURE").encoder_factory(shared_token_embedder=object).layer_factory(
        shared_relative_position_bias=None).attention  # fmt: skip
    assert "memory_efficient_attention.dot_product_attention_multihead" in repr(attention.attention_fn)


def test_a_file_that_imports_t5x_is_told_to_migrate(tmp_path):
    path = tmp_path / "old.gin"
    path.write_text(MODEL)
    with pytest.raises(ConfigurationError, match="(seqio|t5x).*(Install what provides it|flaxformer migrate OLD.gin)"):
        configs.read(str(path))
    path.write_text(HEAD + "from t5x import utils\n")
    with pytest.raises(ConfigurationError, match="Rewrite the file: flaxformer migrate OLD.gin > new.gin"):
        configs.read(str(path))


def test_every_reason_says_something():
    assert all(len(why) > 20 for why in (*NO_COUNTERPART.values(), *NO_FILE.values()))


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
