import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.training import batches
from tests.training import tiny


def test_encoder_decoder_features_become_arguments():
    batch = tiny.batch() | dict.fromkeys(("encoder_segment_ids", "decoder_segment_ids", "decoder_positions"), 1)
    arguments, keywords = batches.module_inputs(batch)
    assert arguments[0] is batch["encoder_input_tokens"] and arguments[2] is batch["decoder_target_tokens"]
    assert sorted(keywords) == ["decoder_positions", "decoder_segment_ids", "encoder_segment_ids"]


def test_a_batch_without_encoder_inputs_is_for_a_decoder_only_model():
    tokens = jnp.ones((2, 3), jnp.int32)
    batch = {
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": tokens,
        "decoder_causal_attention": jnp.array([[1, 1, 0]] * 2),
    }
    model = tiny.DecoderOnly()
    params = model.init(jax.random.key(0), tokens, tokens)["params"]
    logits = batches.forward(model.apply, params, batch)
    expected = model.apply({"params": params}, tokens, tokens, decoder_causal_attention=jnp.array([[1, 1, 0]] * 2))
    np.testing.assert_array_equal(logits, expected)


def test_dropout_is_on_exactly_with_a_key():
    model, batch = tiny.EncoderDecoder(dropout_rate=0.5), tiny.batch()
    arguments, _ = batches.module_inputs(batch)
    params = model.init(jax.random.key(0), *arguments, enable_dropout=False)["params"]
    first, second = (batches.forward(model.apply, params, batch) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    dropped = batches.forward(model.apply, params, batch, jax.random.key(1))
    assert not np.allclose(first, dropped)


def test_tokens_are_counted_without_padding():
    batch = {"encoder_input_tokens": jnp.array([[3, 0]]), "decoder_target_tokens": jnp.array([[4, 5, 0]])}
    assert batches.count_tokens(batch) == 3


def test_missing_features_are_all_named():
    with pytest.raises(ValueError, match="decoder_input_tokens; expected decoder_target_tokens too"):
        batches.module_inputs({"decoder_input_tokens": 1})
    with pytest.raises(ValueError, match="expected decoder_input_tokens, decoder_target_tokens too"):
        batches.module_inputs({"encoder_input_tokens": 1})


def test_features_of_differing_shapes_are_refused():
    batch = {
        "encoder_input_tokens": np.ones((2, 5)),
        "decoder_input_tokens": np.ones((2, 4)),
        "decoder_target_tokens": np.ones((2, 4)),
    }
    with pytest.raises(ValueError, match="of a batch must all be"):
        batches.module_inputs({**batch, "decoder_input_tokens": np.ones((2, 3))})
    with pytest.raises(ValueError, match="of a batch must all be"):
        batches.module_inputs({**batch, "encoder_input_tokens": np.ones(5)})
    with pytest.raises(ValueError, match=r"the features of the batch have \[2, 3\] rows"):
        batches.module_inputs({**batch, "encoder_input_tokens": np.ones((3, 5))})
