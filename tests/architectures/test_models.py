"""Models: packing and padding change nothing, masks come from tokens, and misuse is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures import models as architecture
from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import embedding
from flaxformer.step import Step
from tests.contracts import models

RNG = np.random.default_rng(0)
SOURCE = RNG.integers(1, models.VOCABULARY, (2, 5))
TARGET = RNG.integers(1, models.VOCABULARY, (2, 4))


@pytest.fixture(scope="module")
def encoder_decoder():
    model = models.encoder_decoder()
    params = model.init(jax.random.key(0), SOURCE, TARGET, TARGET, enable_dropout=False)["params"]
    return lambda *args, **keywords: model.apply({"params": params}, *args, enable_dropout=False, **keywords)


@pytest.fixture(scope="module")
def decoder_only():
    model = models.decoder_only()
    params = model.init(jax.random.key(0), TARGET, TARGET, enable_dropout=False)["params"]
    return lambda *args, **keywords: model.apply({"params": params}, *args, enable_dropout=False, **keywords)


def padded(tokens, *widths):
    return np.pad(tokens, ((0, 0), widths))


def test_padding_does_not_change_valid_outputs(encoder_decoder):
    expected = encoder_decoder(SOURCE, TARGET, TARGET)
    longer = encoder_decoder(padded(SOURCE, 0, 3), padded(TARGET, 0, 2), padded(TARGET, 0, 2))
    np.testing.assert_allclose(longer[:, :4], expected, atol=2e-5)


def test_packed_equals_unpacked(encoder_decoder):
    expected = encoder_decoder(SOURCE, TARGET, TARGET)

    def pack(tokens, extra):
        row = np.concatenate([*tokens, np.zeros(extra, int)])[None]
        length = tokens.shape[1]
        ids = np.concatenate([np.repeat([1, 2], length), np.zeros(extra, int)])[None]
        positions = np.concatenate([np.tile(np.arange(length), 2), np.zeros(extra, int)])[None]
        return row, ids, positions

    (source, source_ids, source_positions), (target, target_ids, positions) = pack(SOURCE, 2), pack(TARGET, 1)
    logits = encoder_decoder(source, target, target, source_ids, target_ids, source_positions, positions)
    np.testing.assert_allclose(logits[0, :8].reshape(2, 4, -1), expected, atol=2e-5)


def test_packed_prefix_language_models_equal_unpacked_ones(decoder_only):
    prefix = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    expected = decoder_only(TARGET, TARGET, decoder_causal_attention=prefix)
    row, ids, positions = (np.reshape(x, (1, 8)) for x in (TARGET, np.repeat([1, 2], 4), np.tile(np.arange(4), 2)))
    logits = decoder_only(row, row, ids, positions, prefix.reshape(1, 8))
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=2e-5)


def test_the_future_is_not_seen_but_the_prefix_is(decoder_only):
    changed = TARGET.copy()
    changed[:, 2] = changed[:, 2] % (models.VOCABULARY - 1) + 1
    prefix = np.array([[1, 1, 1, 0]] * 2)
    causal, other = decoder_only(TARGET, TARGET), decoder_only(changed, changed)
    np.testing.assert_array_equal(causal[:, :2], other[:, :2])
    assert not np.allclose(causal[:, 2:], other[:, 2:])
    seen = decoder_only(TARGET, TARGET, decoder_causal_attention=prefix)
    seen_other = decoder_only(changed, changed, decoder_causal_attention=prefix)
    assert not np.allclose(seen[:, 0], seen_other[:, 0])


def test_a_given_mask_replaces_the_one_from_targets(decoder_only):
    causal = np.tril(np.ones((1, 1, 4, 4), bool))
    given = decoder_only(TARGET, None, decoder_attention_mask=causal)
    np.testing.assert_allclose(given, decoder_only(TARGET, TARGET), atol=1e-6)


def test_a_bidirectional_prefix_is_prefilled_like_it_is_read(decoder_only):
    prefix = np.array([[1, 1, 1], [1, 1, 1]])
    expected = decoder_only(TARGET, TARGET, decoder_causal_attention=padded(prefix, 0, 1))
    step = Step.start(jnp.ones((1, 3), bool), 4)
    logits, cache = decoder_only(TARGET[:, :3], step=step, decoder_causal_attention=prefix, mutable=["cache"])
    np.testing.assert_allclose(logits, expected[:, :3], atol=2e-5)
    with pytest.raises(ValueError, match="given after the prompt"):
        decoder_only(TARGET[:, 2:], step=step.advance(2), decoder_causal_attention=prefix, mutable=["cache"])


def test_encoder_only_is_the_encoder_of_an_encoder_decoder(encoder_decoder):
    model = t5_architecture.EncoderOnly(models.encoder)
    params = model.init(jax.random.key(0), SOURCE, enable_dropout=False)["params"]
    source = padded(SOURCE, 0, 2)
    hidden = model.apply({"params": params}, source, enable_dropout=False)
    assert hidden.shape == (2, 7, models.WIDTH)
    np.testing.assert_array_equal(hidden[:, 5:], 0)
    np.testing.assert_allclose(hidden[:, :5], model.apply({"params": params}, SOURCE, enable_dropout=False), atol=1e-5)


def test_embedders_can_be_reached_from_outside():
    model = models.encoder_decoder()
    bound = model.bind(model.init(jax.random.key(0), SOURCE, TARGET, TARGET, enable_dropout=False))
    assert bound.encoder_embedder.embedders["token_ids"].num_embeddings == models.VOCABULARY
    assert bound.decoder_embedder.embedders["token_ids"].features == models.WIDTH


def test_misuse_is_refused(encoder_decoder, decoder_only):
    encoded = encoder_decoder(SOURCE, method="encode")
    with pytest.raises(ValueError, match="segment ids were given while decoding"):
        encoder_decoder(encoded, SOURCE, TARGET, TARGET, None, TARGET, method="decode", decode=True, mutable=["cache"])
    with pytest.raises(ValueError, match="encoder_segment_ids came without decoder_segment_ids; expected both"):
        encoder_decoder(encoded, SOURCE, TARGET, TARGET, SOURCE, method="decode")
    with pytest.raises(ValueError, match="decoder_target_tokens is None"):
        encoder_decoder(encoded, SOURCE, TARGET, method="decode")
    with pytest.raises(ValueError, match="decode=True and prefill=True"):
        decoder_only(TARGET, TARGET, decode=True, prefill=True)
    with pytest.raises(ValueError, match="decoder_attention_mask and decoder_causal_attention were both given"):
        decoder_only(TARGET, None, decoder_causal_attention=TARGET, decoder_attention_mask=np.ones((1, 1, 4, 4)))
    with pytest.raises(AssertionError, match=r"got decoder_input_tokens of shape \(4,\); expected rank 2"):
        decoder_only(TARGET[0], TARGET)
    with pytest.raises(ValueError, match=r"got inputs of shape \(0, 5\); expected at least one token"):
        encoder_decoder(SOURCE[:0], method="encode")
    with pytest.raises(AssertionError, match="encoder_outputs has shape"):
        encoder_decoder(encoded[0], SOURCE, TARGET, TARGET, method="decode")
    with pytest.raises(ValueError, match="expected exactly one of the two"):
        models.encoder().clone(token_embedder_factory=None).init(jax.random.key(0), SOURCE)


def test_sequences_longer_than_the_position_table_are_refused():
    for table in (embedding.PositionEmbed(3, models.WIDTH), embedding.FixedEmbed(models.WIDTH, max_length=3)):
        model = models.decoder_only(position_embedder_factory=table.clone)
        with pytest.raises(ValueError, match="got decoder_input_tokens of 4 tokens; expected at most 3, the rows"):
            jax.eval_shape(lambda model=model: model.init(jax.random.key(0), TARGET, TARGET))


def test_masks_are_symbolic_until_a_kernel_needs_them():
    mask = architecture.decoder_mask(jnp.asarray(TARGET))
    np.testing.assert_array_equal(mask.dense(4, 4)[0, 0], np.tril(np.ones((4, 4), bool)))
