import jax.numpy as jnp
import pytest

from flaxformer.decoding.hidden_states import last_hidden


def test_what_is_sown_goes_before_the_last_norm():
    norm = {"decoder": {"decoder_norm": {"__call__": (jnp.zeros(1),)}}}
    assert float(last_hidden(norm)[0]) == 0.0
    assert float(last_hidden({**norm, "pre_logits_layer": (jnp.ones(1),)})[0]) == 1.0


def test_models_without_are_told_what_to_do():
    with pytest.raises(ValueError, match="shows no last hidden states; expected a module named 'decoder_norm'"):
        last_hidden({})
