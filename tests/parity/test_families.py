"""Every family computes what Hugging Face does: hidden states, attention weights, logits, losses, generated tokens."""

import pytest

from tests.parity import decoders, encoder_decoders, encoders, generation, images

ENCODER_DECODERS = (
    "t5", "t5_1_1", "mt5", "umt5", "bart", "pegasus", "marian", "t5gemma", "led", "mbart", "switch_transformers",
)  # fmt: skip
ENCODERS = (
    "bert", "roberta", "xlm_roberta", "distilbert", "electra_generator", "electra_discriminator", "albert",
    "deberta_v2", "deberta_v3", "longformer",
)  # fmt: skip
DECODERS = (
    "gpt2", "llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "gpt_neox", "phi", "falcon", "falcon_new", "bloom", "opt", "opt_350m", "mixtral",
)  # fmt: skip

# Attributes that change the wiring, in tiny models without recorded generation.
VARIATIONS = ("gpt2_by_layer", "llama_yarn", "phi_head_norms", "opt_narrow", "falcon_rw")


# Each is a variation of another one here.
SLOW = {
    "mt5",
    "pegasus",
    "xlm_roberta",
    "electra_generator",
    "deberta_v3",
    "qwen2",
    "gemma",
    "falcon",
    "opt",
    "vit_pooler",
    "clip_new_eos",
    "llama_yarn",
    "phi_head_norms",
    "opt_narrow",
    "falcon_rw",
}


def by_cost(families):
    """The variations with the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in families]


@pytest.mark.parametrize("family", by_cost(ENCODER_DECODERS))
def test_encoder_decoders(family):
    assert encoder_decoders.check(family) <= 1e-4


@pytest.mark.parametrize("family", by_cost(ENCODERS))
def test_encoders(family):
    assert encoders.check(family) <= 1e-4


@pytest.mark.parametrize("cases", [("main", "nomask", "base"), ("short",)])
def test_blocks_depend_on_the_length(cases):
    """Their weights on keys that count several times overwrite each other, and say nothing."""
    assert encoders.check("bigbird", cases=cases, attentions=False) <= 1e-4


@pytest.mark.slow
def test_blocks_without_biases():
    assert encoders.check("bigbird_unbiased", attentions=False) <= 1e-4


@pytest.mark.parametrize("family", by_cost(["vit", "vit_pooler"]))
def test_encoders_of_images(family):
    assert images.check(family) <= 1e-4


@pytest.mark.parametrize("family", by_cost(["clip", "clip_new_eos"]))
def test_two_towers(family):
    assert images.check_clip(family) <= 1e-4


@pytest.mark.parametrize("family", by_cost(DECODERS + VARIATIONS))
def test_decoders(family):
    assert decoders.check(family) <= 1e-4


@pytest.mark.parametrize("family", ["mistral"])
def test_generation_follows_beam_search_of_hugging_face(family):
    count, _ = generation.check(family, lambda name: name.startswith("beam4_lp") and name.endswith("esFalse"))
    assert count == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODER_DECODERS + DECODERS)
def test_all_recorded_generation(family):
    assert generation.check(family)[0] >= (3 if family == "mbart" else 8)
