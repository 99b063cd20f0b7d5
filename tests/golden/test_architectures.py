"""Layers, stacks and models compute what the recorded cases hold: forward, decoding, gradients and initialisation."""

import pytest

from tests.golden.build import names
from tests.golden.run import run_case

GROUPS = ("layers", "encoder-decoder", "decoder-only", "gradients", "initialisation")


@pytest.mark.parametrize("name", names(*GROUPS))
def test_architecture_matches_recording(name):
    run_case(name)
