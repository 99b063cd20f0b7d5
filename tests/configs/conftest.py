"""Gin files written for one test, and gin itself left as it was found."""

import gin
import pytest

from tests.configs import toy


@pytest.fixture
def write(tmp_path):
    """Writes a gin file about the toy classes; returns its path."""

    def write_file(text: str, name: str = "file.gin", header: str = toy.HEADER) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + text)
        return str(path)

    return write_file


@pytest.fixture
def clean_gin():
    """Global gin state for tests that use gin itself."""
    gin.clear_config()
    yield
    gin.clear_config()
