"""`flaxformer generate` on tiny recorded models; the text side with a tokenizer of bytes, which needs no package."""

import io
import json
import shutil

import pytest

from flaxformer import cli
from tests.parity.recorded import Recorded


@pytest.fixture(scope="module")
def folder():
    return Recorded("t5_1_1").folder


def recorded_case(folder, strategy):
    cases = json.loads((folder / "generate.json").read_text())["cases"]
    return cases
