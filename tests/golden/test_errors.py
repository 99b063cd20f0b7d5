"""What google/flaxformer refuses is refused here too.

The rule for types: the type that was recorded, and a ValueError, whatever that type is (see `flaxformer.errors`).
"""

import builtins
from collections.abc import Mapping
from typing import Any

import jax
import pytest

from tests.golden.build import build, build_list, load, resolve
from tests.golden.run import init_rngs

CASES = {case["name"]: case for case in load("errors").description["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_bad_call_is_refused(name):
    case = CASES[name]
    constructor, args = build(case.get("constructor", {})), build_list(case["args"])
    keywords = build(case.get("kwargs", {}))
    target = resolve(case["target"])
    calls = _prepare(case, target, constructor) if case["kind"] in ("apply", "decode") else None
    with pytest.raises(getattr(builtins, case["raises"])) as error:
        if case["kind"] == "function":
            target(*args, **keywords)
        elif case["kind"] == "init":
            module = target(**constructor)
            jax.eval_shape(lambda rngs: module.init(rngs, *args, **keywords), init_rngs())
        else:
            module, variables = calls
            module.apply(variables, *args, mutable=["cache"], **keywords)
    assert isinstance(error.value, ValueError)


def _prepare(case: Mapping[str, Any], target: Any, constructor: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """A module and the variables for the call that must fail, which need calls that must succeed."""
    module = target(**constructor)
    args = build_list(case.get("first_call_creates_cache_with", case["args"][:3]))
    quiet = {key: value for key, value in case["kwargs"].items() if key == "enable_dropout"}
    variables = {"params": module.init(init_rngs(), *args, **quiet)["params"]}
    if case["kind"] == "decode":
        _, cache = module.apply(variables, *args, decode=True, mutable=["cache"], **quiet)
        variables |= cache
    return module, variables
