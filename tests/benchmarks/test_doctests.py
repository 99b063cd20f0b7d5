import doctest
import importlib
import pkgutil

import pytest

import benchmarks

OURS = [m.name for m in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.") if ".peers." not in m.name]


@pytest.mark.parametrize("name", [name for name in OURS if not name.endswith("__main__")])
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
