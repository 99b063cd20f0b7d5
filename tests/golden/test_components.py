"""Components compute what the recorded cases hold, from the recorded parameter trees."""

import pytest

from tests.golden.build import names
from tests.golden.run import run_case

GROUPS = (
    "dense",
    "mlp",
    "layer norm",
    "embedding",
    "initializers",
    "relative position bias",
    "convolution",
)


@pytest.mark.parametrize("name", names(*GROUPS))
def test_component_matches_recording(name):
    run_case(name)
