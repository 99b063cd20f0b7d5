"""Waves become frames: their count, what padding reaches, what is hidden, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs
from flaxformer.architectures.waveforms import ConvolvedPositions, TimeNorm, WaveFeatures

WAVE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 60)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    return configs.load("wav2vec2/tiny", ["NUM_LAYERS = 1", "FIRST_FEATURE_NORM = None"])


@pytest.fixture(scope="module")
def variables(model):
    return {"params": jax.jit(lambda: model.init(jax.random.key(0), WAVE, enable_dropout=False))()["params"]}


def test_frames_are_as_many_as_the_rule_of_lengths_says():
    module = WaveFeatures((4, 5), (8, 4), (4, 2))
    for samples in (20, 23, 24, 28):
        x = jnp.zeros((1, samples))
        made = jax.eval_shape(lambda x=x: module.init_with_output(jax.random.key(0), x)[0])
        assert made.shape == (1, int(module.lengths(jnp.array(samples))), 5)


def test_real_frames_do_not_see_padding_and_hidden_ones_are_not_heard(model, variables):
    valid = jnp.arange(60) < jnp.array([[60], [44]])
    hidden = jnp.array([[True], [False]]) | jnp.zeros((2, 6), bool)

    @jax.jit
    def outputs(wave):
        return model.apply(variables, wave, valid=valid, hidden_frames=hidden, enable_dropout=False)

    before = outputs(WAVE)
    assert before["ctc"].shape == (2, 6, 32) and before["valid"].sum(axis=1).tolist() == [6, 4]
    after = outputs(WAVE.at[1, 44:].set(9.0))
    np.testing.assert_allclose(after["ctc"][1, :4], before["ctc"][1, :4], atol=1e-6)
    assert not np.allclose(after["features"][1, 4:], before["features"][1, 4:])
    other = outputs(WAVE.at[0].set(WAVE[1]))
    np.testing.assert_array_equal(other["ctc"][0], before["ctc"][0])
    assert not np.allclose(other["features"][0], before["features"][0])


def test_every_channel_is_normal_over_time():
    x = jnp.asarray(np.random.default_rng(1).normal(3.0, 2.0, (2, 50, 4)))
    made, _ = TimeNorm().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(made.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(made.std(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_positions_keep_the_length_and_reach_half_a_kernel_back(kernel_size):
    module = ConvolvedPositions(kernel_size, 2)
    x = jnp.zeros((1, 9, 4)).at[0, 4].set(1.0)
    made, _ = module.init_with_output(jax.random.key(0), x)
    moved = np.flatnonzero(np.abs(np.asarray(made - x)).sum(axis=(0, 2)))
    half = kernel_size // 2
    assert made.shape == x.shape and moved.tolist() == list(range(5 - kernel_size + half, 5 + half))


def test_what_cannot_be_read_is_refused(model):
    with pytest.raises(ValueError, match=r"wave has shape \(2, 60, 1\); expected \[batch, samples\]"):
        model.init(jax.random.key(0), WAVE[..., None], enable_dropout=False)
    with pytest.raises(ValueError, match="hidden_frames were given and masked_factory is None"):
        jax.eval_shape(
            lambda: model.clone(masked_factory=None).init(
                jax.random.key(0), WAVE, hidden_frames=jnp.ones((2, 6), bool), enable_dropout=False
            )
        )
