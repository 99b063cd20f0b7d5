"""T5X's flag conventions."""

import argparse

import pytest

from flaxformer.configs import flags


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    return parser.parse_args(flags.rewrite(arguments))


def test_short_bindings_become_bindings_split_at_the_first_equals_sign():
    arguments = ["--gin.MODEL_DIR='a=b'", "--gin.train/utils.DatasetConfig.pack=False", "--gin_file=x", "--other.y=1"]
    assert flags.rewrite(arguments) == [
        "--gin_bindings=MODEL_DIR = 'a=b'",
        "--gin_bindings=train/utils.DatasetConfig.pack = False",
        "--gin_file=x",
        "--other.y=1",
    ]


@pytest.mark.parametrize("flag", ["--gin.DROPOUT_RATE", "--gin.=3"])
def test_a_short_binding_without_value_is_refused(flag):
    with pytest.raises(ValueError, match=r"has no '='; expected --gin\.NAME=VALUE"):
        flags.rewrite([flag])


def test_files_come_first_then_bindings_and_later_ones_win(write):
    first, second = write("SIZE = 1\nDEPTH = 1"), write("SIZE = 2", "second.gin")
    arguments = parsed("--gin.DEPTH=5", f"--gin_file={first}", f"--gin_file={second}", "--gin_bindings=DEPTH = 6")
    configuration = flags.configuration(arguments)
    assert (configuration.build("SIZE"), configuration.build("DEPTH")) == (2, 6)


def test_search_paths_are_a_comma_separated_list(write, tmp_path):
    write("SIZE = 3", "b/part.gin")
    arguments = parsed("--gin_file=part.gin", f"--gin_search_paths={tmp_path / 'a'},{tmp_path / 'b'}")
    assert flags.configuration(arguments).build("SIZE") == 3


def test_macros_that_only_the_caller_knows_may_be_bound(write):
    arguments = parsed(f"--gin_file={write('SIZE = 1')}", "--gin.TRAIN_STEPS=7")
    assert flags.configuration(arguments, macros=["TRAIN_STEPS"]).build("TRAIN_STEPS") == 7
    with pytest.raises(ValueError, match="TRAIN_STEPS would change nothing"):
        flags.configuration(arguments)


def test_a_command_without_a_file_is_refused():
    with pytest.raises(ValueError, match="no gin file was given; expected --gin_file=FILE"):
        flags.configuration(parsed())
