"""Every family computes what Hugging Face does: hidden states, attention weights, logits, losses, generated tokens."""

import pytest

from tests.parity import decoders, encoder_decoders, encoders, generation

ENCODER_DECODERS = ("t5", "t5_1_1", "mt5", "umt5", "bart", "pegasus", "marian")
ENCODERS = ("bert", "roberta", "xlm_roberta", "distilbert", "electra_generator", "electra_discriminator")
DECODERS = (
    "gpt2", "llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "gpt_neox", "phi", "falcon", "falcon_new", "bloom", "opt", "opt_350m",
)  # fmt: skip


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_encoder_decoders(family):
    assert encoder_decoders.check(family) <= 1e-4


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family):
    assert encoders.check(family) <= 1e-4


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family):
    assert decoders.check(family) <= 1e-4


@pytest.mark.parametrize("family", ["bart", "gpt2", "mistral"])
def test_generation_follows_beam_search_of_hugging_face(family):
    count, _ = generation.check(family, lambda name: name.startswith("beam4_lp") and name.endswith("esFalse"))
    assert count == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODER_DECODERS + DECODERS)
def test_all_recorded_generation(family):
    assert generation.check(family)[0] >= 8
