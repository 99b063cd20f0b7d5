"""Families of sound compute what Hugging Face does: hidden states, attention weights, logits, losses, tokens."""

import pytest

from tests.parity import generation, spectrograms, waves


def test_spectrograms_to_text():
    assert spectrograms.check("whisper") <= 1e-4


def test_a_spectrogram_is_written_down_behind_a_given_prompt():
    assert generation.check("whisper", lambda name: name == "greedy_suppress")[0] == 1


@pytest.mark.slow
def test_all_recorded_generation():
    assert generation.check("whisper")[0] == 10


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2_stable"])
def test_encoders_of_waves(family):
    assert waves.check(family) <= 1e-4
