"""The pages of the gallery, imported as they import each other: by name, from the folder they stand in."""

import importlib
import sys

import pytest

from tests.gallery.folders import GALLERY, PAGES


@pytest.fixture(scope="module")
def gallery():
    """`gallery(name)` is a module of that folder. None of them stays: installed packages have names like theirs."""
    names = (*PAGES, "gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GALLERY)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)
