"""The recorded cases are all run, and their descriptions are read as they say."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.golden import test_architectures, test_attention, test_components
from tests.golden.build import build, build_list, groups, load, names, resolve


def test_every_group_of_cases_is_run():
    run = {*test_components.GROUPS, *test_attention.GROUPS, *test_architectures.GROUPS}
    elsewhere = {"parameter trees", "param remapping", "errors"}
    assert run | elsewhere == groups()
    assert len(names(*groups())) == 172


def test_tags_become_values():
    arrays = {"inputs/x": np.arange(3)}
    assert build([1, "a", None, {"k": {"$tuple": [1, [2]]}}]) == [1, "a", None, {"k": (1, [2])}]
    assert build({"$ref": "jax.numpy.tanh"}) is jnp.tanh
    assert build({"$dtype": "bfloat16"}) == jnp.bfloat16
    assert build({"$module": "flax.linen.Dense", "kwargs": {"features": 2}}) == nn.Dense(2)
    assert build({"$ones": [2, 1], "dtype": "int32"}).dtype == jnp.int32
    assert build({"$array": "inputs/x"}, arrays).tolist() == [0, 1, 2]
    assert build({"$call": "math.pow", "args": [2, 3]}) == 8


def test_factory_makes_nested_values_anew_at_each_call():
    factory = build({"$factory": "builtins.dict", "kwargs": {"part": {"$call": "builtins.object"}}})
    first, second = factory(a=1), factory()
    assert first["a"] == 1
    assert first["part"] is not second["part"]


def test_same_is_the_very_object():
    first, second = build_list([{"$ones": [1], "dtype": "float32"}, {"$same": 0}])
    assert first is second


def test_paths_may_lead_through_classes():
    assert resolve("flax.linen.Dense.__call__") is nn.Dense.__call__
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_package.thing")


def test_tolerance_is_tight_unless_recorded_otherwise():
    assert load("mlp_relu").tolerance == 1e-5
    assert load("mlp_bf16").tolerance == 0.03
