"""Beam search and constraints do what Hugging Face recorded; `tests/parity` has every family and case."""

import pytest

from tests.parity import generation


@pytest.mark.parametrize(
    "case", ["beam4_lp1.0_esTrue", "beam4_lp2.0_esnever", "greedy_repetition_penalty", "beam4_no_repeat_bigram"]
)
def test_recorded_generation_of_t5(case):
    count, _ = generation.check("t5", lambda name: name == case)
    assert count == 1
