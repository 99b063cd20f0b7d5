"""The two-stage selections agree with the plain ones, ties included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import logits as selection

WIDTHS = (7, 1280, 2053)  # one stage; blocks that divide the vocabulary; blocks with padding (2053 is prime)

draws = given(seed=st.integers(0, 2**16), levels=st.sampled_from([2, 40, 10**6]))
few = settings(max_examples=15, deadline=None)


def random_logits(seed, levels, *shape):
    """Few levels make many ties."""
    return np.random.RandomState(seed).randint(-levels, levels, shape).astype(np.float32) * (10.0 / levels)


argmax = jax.jit(selection.argmax)
top_k = jax.jit(selection.top_k, static_argnums=1)
top_p_mask = jax.jit(selection.top_p_mask)


@pytest.mark.parametrize("width", WIDTHS)
@few
@draws
def test_argmax_is_the_first_of_the_largest(width, seed, levels):
    x = random_logits(seed, levels, 3, width)
    np.testing.assert_array_equal(argmax(x), np.argmax(x, axis=-1))


@pytest.mark.parametrize("width", WIDTHS)
@few
@draws
def test_top_k_is_exact_and_keeps_the_order_of_equals(width, seed, levels):
    x = random_logits(seed, levels, 3, width)
    values, index = top_k(x, 4)
    expected = np.argsort(-x, axis=-1, kind="stable")[:, :4]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=-1))


def test_argmax_of_nan_stays_inside_the_vocabulary():
    for width in WIDTHS:
        assert int(argmax(jnp.full((width,), jnp.nan))) < width


@functools.partial(jax.jit, static_argnums=2)
def plain_continuations(logits, scores, count):
    log_probs = jax.nn.log_softmax(logits) + scores[..., None]
    best, flat = jax.lax.top_k(log_probs.reshape(len(logits), -1), count)
    return best, flat // logits.shape[-1], flat % logits.shape[-1]


best_continuations = jax.jit(selection.best_continuations, static_argnums=2)


@pytest.mark.parametrize("width", WIDTHS)
@few
@draws
def test_best_continuations_equal_a_top_k_of_the_whole_log_softmax(width, seed, levels):
    logits = random_logits(seed, levels, 2, 3, width)
    scores = -np.abs(random_logits(seed + 1, levels, 2, 3))
    for found, expected in zip(
        best_continuations(logits, scores, 6), plain_continuations(logits, scores, 6), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@few
@given(seed=st.integers(0, 2**16), levels=st.sampled_from([2, 1000]), p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_most_probable_set_with_its_equals(seed, levels, p):
    x = random_logits(seed, levels, 1, 9)
    probabilities = np.asarray(jax.nn.softmax(x))[0]
    kept = np.asarray(top_p_mask(x, p))[0]
    least = probabilities[kept].min()
    np.testing.assert_array_equal(kept, probabilities >= least)
    assert probabilities[kept].sum() >= p - 1e-6
    assert probabilities[probabilities > least].sum() < p + 1e-6


def test_top_p_of_one_keeps_everything():
    assert np.all(top_p_mask(random_logits(0, 1000, 4, 9), 1.0))


def test_top_k_mask_keeps_what_equals_the_kth():
    mask = selection.top_k_mask(jnp.array([[3.0, 1.0, 2.0, 2.0]]), 2)
    np.testing.assert_array_equal(mask, [[True, False, True, True]])


def test_log_prob_of_is_the_log_softmax_at_the_token():
    x = random_logits(0, 1000, 3, 9)
    tokens = np.array([0, 4, 8])
    expected = jax.nn.log_softmax(x)[np.arange(3), tokens]
    np.testing.assert_allclose(selection.log_prob_of(x, tokens), expected, rtol=1e-6)
