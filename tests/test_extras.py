"""Optional dependencies name their extra."""

import json
import sys

import pytest

from flaxformer import extras


def test_an_installed_dependency_is_returned():
    assert extras.require("json", extra="train") is json
    assert extras.require("json.decoder", extra="train") is json.decoder


@pytest.mark.parametrize("module", ["no_such_dependency", "no_such_dependency.part", "json.no_such_part"])
def test_a_missing_dependency_names_the_extra_and_the_command(module):
    with pytest.raises(ImportError, match=rf"{module} is not installed.*pip install 'flaxformer\[demo\]'"):
        extras.require(module, extra="demo")


def test_a_dependency_that_fails_inside_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_dependency.py").write_text("import something_it_needs_itself\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_it_needs_itself") as caught:
        extras.require("broken_dependency", extra="train")
    assert not isinstance(caught.value, extras.MissingExtraError)
    sys.modules.pop("broken_dependency", None)
