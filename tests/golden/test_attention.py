"""Attention functions, masks and layers compute what the recorded cases hold, with and without a cache."""

import pytest

from tests.golden.build import names
from tests.golden.run import run_case

GROUPS = (
    "attention functions",
    "masks",
    "MultiHeadDotProductAttention",
    "MultiQueryDotProductAttention",
    "LocalAttentionLayer",
)


@pytest.mark.parametrize("name", names(*GROUPS))
def test_attention_matches_recording(name):
    run_case(name)
