"""Spectrograms are read by an encoder-decoder, and written down by `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs
from flaxformer.architectures.spectrograms import SpectrogramEmbed
from flaxformer.decoding import generate
from flaxformer.decoding.drafts import PromptLookup
from flaxformer.decoding.strategies.greedy import Greedy

SOUND = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 5)), jnp.float32)
TOKENS = jnp.array([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module")
def model():
    return configs.load(
        "whisper/tiny", ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1", "NUM_EMBEDDINGS = 32", "NUM_CHANNELS = 5"]
    )


@pytest.fixture(scope="module")
def variables(model):
    return {"params": jax.jit(model.init)(jax.random.key(0), SOUND, TOKENS, TOKENS)["params"]}


@pytest.mark.slow
def test_a_draft_from_the_prompt_changes_nothing(model, variables):
    inputs = {"encoder_input_tokens": SOUND, "decoder_prompt_tokens": TOKENS}
    options = {"strategy": Greedy(), "max_new_tokens": 6, "eos_id": 1, "bos_id": 2}
    plain = generate(model, variables, inputs, **options)
    drafted = generate(model, variables, inputs, draft=PromptLookup(), **options)
    np.testing.assert_array_equal(plain.tokens, drafted.tokens)
    assert plain.lengths.max() > 1


def test_what_is_not_valid_is_not_attended_to(model, variables):
    valid = jnp.arange(12) < jnp.array([[12], [7]])
    quiet = SOUND.at[1, 16:].set(9.0)  # seen by tokens from 7 on

    @jax.jit
    def logits(sound):
        return model.apply(variables, sound, TOKENS, TOKENS, encoder_valid=valid, enable_dropout=False)

    np.testing.assert_allclose(logits(SOUND), logits(quiet), atol=1e-6)


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"spectrogram has shape \(2, 24, 5\); expected \[batch, 20, 80\]"):
        SpectrogramEmbed(8, 10).init(jax.random.key(0), SOUND)
