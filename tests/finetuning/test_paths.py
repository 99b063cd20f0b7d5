import pytest

from flaxformer import finetuning
from flaxformer.finetuning import paths

PARAMS = {"encoder": {"kernel": 1, "scale": 2}, "decoder": {"kernel": 3}}


def test_a_pattern_matches_whole_paths():
    assert finetuning.matching(PARAMS, [".*/kernel"]) == {
        "encoder": {"kernel": True, "scale": False},
        "decoder": {"kernel": True},
    }


def test_a_pattern_that_matches_nothing_is_refused_with_near_paths():
    with pytest.raises(ValueError, match=r"'encoder/kernle' matches no parameter; .* such as encoder/kernel"):
        finetuning.matching(PARAMS, [".*/kernel", "encoder/kernle"])


def test_a_bare_string_is_refused():
    with pytest.raises(ValueError, match=r"patterns is the string 'a'; expected a sequence. Write \['a'\]"):
        paths.chosen(["a"], "a")


def test_flattening_is_undone():
    assert paths.unflatten(paths.flatten(PARAMS)) == PARAMS
