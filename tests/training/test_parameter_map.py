import pytest

from flaxformer.training.parameter_map import HParamMap


def test_the_first_rule_found_in_the_path_gives_the_value():
    values = HParamMap([(r"scale", 1), (r"encoder/.*kernel$", 2), (r".", 3)])
    params = {"encoder": {"norm": {"scale": 0.0}, "wo": {"kernel": 0.0}}, "decoder": {"kernel": 0.0}}
    assert values(params) == {"encoder": {"norm": {"scale": 1}, "wo": {"kernel": 2}}, "decoder": {"kernel": 3}}


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(KeyError, match=r"no rule matches the parameter a/b; expected one for every parameter"):
        HParamMap([("c", 1)])["a/b"]
