"""The command line finds its commands, explains, and says what is wrong without a traceback."""

import subprocess
import sys
import types

import pytest

from flaxformer import cli


def test_explain_prints_what_a_file_builds(capsys):
    assert cli.main(["explain", "t5_1_1/tiny", "--gin.DROPOUT_RATE=0.1", "--length", "4"]) == 0
    printed = capsys.readouterr().out
    assert "decoder/logits_dense/kernel" in printed and "embed vocab" in printed
    assert "DROPOUT_RATE" in printed and "bindings:1" in printed


def test_explain_takes_the_shapes_of_inputs(capsys):
    assert cli.main(["explain", "vit/tiny", "--input", "images=2x8x12x3:bfloat16"]) == 0
    assert "FLOPs for images 2 x 8 x 12 x 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "t5_1_1/tini"], "no gin file 't5_1_1/tini'"),
        (["explain", "t5_1_1/tiny", "--gin.DROPUT_RATE=0.1"], "did you mean DROPOUT_RATE"),
        (["explain", "t5_1_1/tiny", "--gin.DROPOUT_RATE"], "has no '='"),
        (["explain", "--gin_file=t5_1_1/parts"], "required and not bound"),
        (["explain"], "no gin file was given"),
        (["explain", "vit/tiny", "--input", "images"], "expected NAME=SHAPE"),
    ],
)
def test_what_is_wrong_is_one_message_and_status_2(capsys, arguments, message):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_commands_whose_code_is_not_there_are_not_offered(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "nothing", ("flaxformer.no_such_room.command", "does nothing"))
    monkeypatch.setitem(cli.COMMANDS, "little", ("flaxformer.no_such_command", "does little"))
    assert "explain" in cli.available()
    assert not {"nothing", "little"} & set(cli.available())
    with pytest.raises(SystemExit, match="2"):
        cli.main(["nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_the_status_is_what_the_command_returns(monkeypatch):
    module = types.SimpleNamespace(add_arguments=lambda parser: parser.add_argument("word"), run=lambda a: len(a.word))
    monkeypatch.setitem(cli.COMMANDS, "measure", ("flaxformer.cli", "measures"))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    assert cli.main(["measure", "abc"]) == 3


def test_the_command_runs_as_a_program():
    shown = subprocess.run([sys.executable, "-m", "flaxformer.cli", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "explain" in shown.stdout
