"""Rounded matrices: how far they are from what they stand for, and who takes them."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.dense import DenseGeneral
from flaxformer.components.int8_matrix import Int8Matrix

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(16, 6)).astype(np.float32)
ROWS = RNG.normal(size=(2, 3, 16)).astype(np.float32)


def test_every_number_is_at_most_half_a_level_away():
    rounded = Int8Matrix.rounded(jnp.asarray(MATRIX))
    assert rounded.values.dtype == jnp.int8
    np.testing.assert_allclose(rounded.scale, np.abs(MATRIX).max(axis=0) / 127, rtol=1e-6)
    assert (np.abs(jnp.asarray(rounded) - MATRIX) <= rounded.scale * 0.5001).all()


def test_a_stack_is_rounded_matrix_by_matrix():
    stack = Int8Matrix.rounded(jnp.stack([MATRIX, 2 * MATRIX]))
    alone = Int8Matrix.rounded(jnp.asarray(MATRIX))
    np.testing.assert_array_equal(stack.values, [alone.values] * 2)
    np.testing.assert_allclose(stack.scale, [alone.scale, 2 * alone.scale], rtol=1e-6)


def test_a_product_is_that_of_the_rounded_numbers():
    weights = Int8Matrix.rounded(jnp.asarray(MATRIX))
    scale = np.abs(ROWS).max(axis=-1, keepdims=True) / 127
    expected = (np.round(ROWS / scale) * scale) @ np.asarray(jnp.asarray(weights))
    np.testing.assert_allclose(weights.times(jnp.asarray(ROWS)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected, ROWS @ MATRIX, atol=0.1)  # of numbers of about 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_keep_the_dtype_of_the_rows(dtype):
    assert Int8Matrix.rounded(jnp.asarray(MATRIX)).times(jnp.asarray(ROWS, dtype)).dtype == dtype


def test_zeros_stay_zeros_and_what_is_no_number_stays_in_its_row():
    weights = Int8Matrix.rounded(jnp.zeros((16, 6)))
    assert not jnp.asarray(weights).any()
    found = Int8Matrix.rounded(jnp.asarray(MATRIX)).times(jnp.asarray(ROWS[0]).at[0, 3].set(jnp.nan).at[1].set(0.0))
    assert jnp.isnan(found[0]).all() and (found[1] == 0).all() and jnp.isfinite(found[2]).all()


@pytest.mark.parametrize("reshape_kernel", [True, False])
def test_dense_layers_take_it_for_their_kernel(reshape_kernel):
    layer = DenseGeneral(6, use_bias=False, reshape_kernel=reshape_kernel)
    weights = Int8Matrix.rounded(jnp.asarray(MATRIX))
    found = layer.apply({"params": {"kernel": weights}}, ROWS)
    expected = weights.times(jnp.asarray(ROWS)) if reshape_kernel else ROWS @ jnp.asarray(weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_modules_that_do_not_know_it_multiply_float32():
    weights = Int8Matrix.rounded(jnp.asarray(MATRIX))
    found = nn.Dense(6, use_bias=False).apply({"params": {"kernel": weights}}, ROWS)
    np.testing.assert_allclose(found, ROWS @ jnp.asarray(weights), rtol=1e-5, atol=1e-5)
