"""Products of loops: the same products, taken by modules that are asked for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.dense import DenseGeneral
from flaxformer.components.embedding import Embed
from flaxformer.components.products import TERMS, WIDEST, read_in_loop, row_times_weights, turned_weights_times_rows


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_it_is_the_product_of_rows_with_the_transposed_weights(shape):
    key = jax.random.PRNGKey(0)
    rows, weights = jax.random.normal(key, shape), jax.random.normal(key, (7, 5))
    found = jax.jit(turned_weights_times_rows)(rows, weights)
    assert found.shape == (*shape[:-1], 7)
    np.testing.assert_allclose(found, np.asarray(rows) @ np.asarray(weights).T, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_of_blocks_are_the_product_of_one_row(dtype):
    key = jax.random.PRNGKey(0)
    row, weights = jax.random.normal(key, (3 * TERMS,), dtype), jax.random.normal(key, (3 * TERMS, 7), dtype)
    found = jax.jit(row_times_weights)(row, weights)
    assert found.dtype == dtype and found.shape == (7,)
    exact = np.asarray(row, np.float64) @ np.asarray(weights, np.float64)
    np.testing.assert_allclose(found, exact, atol=1e-5 if dtype == jnp.float32 else 0.05)


def dense():
    return DenseGeneral((2, 4), use_bias=True, axis=(-2, -1)), jnp.ones((3, 5, 2, 6))


def split_kernel():
    return DenseGeneral((2, 4), use_bias=False, axis=(-2, -1), reshape_kernel=False), jnp.ones((3, 5, 2, 6))


class Attends(Embed):
    def __call__(self, query):
        return self.attend(query)


def table():
    return Attends(num_embeddings=7, features=6), jnp.ones((3, 5, 6))


@pytest.mark.parametrize("order", ["as stored", "turned", None])
@pytest.mark.parametrize(("make", "turns"), [(dense, True), (table, True), (split_kernel, False)])
def test_modules_take_these_products_only_where_asked(make, turns, order):
    module, x = make()
    variables = module.init(jax.random.PRNGKey(1), x)
    x = jax.random.normal(jax.random.PRNGKey(2), x.shape)
    with read_in_loop(order):
        asked = jax.make_jaxpr(module.apply)(variables, x)
        found = module.apply(variables, x)
    assert ("optimization_barrier" in str(asked)) == (turns and order == "turned")
    np.testing.assert_allclose(found, module.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "features", "dtype", "blocks"),
    [
        ((1, 1), TERMS, 4, jnp.float32, True),
        ((1,), 2 * TERMS, 4, jnp.bfloat16, True),
        ((2, 1), TERMS, 4, jnp.float32, True),
        ((3, 1), TERMS, 4, jnp.float32, False),
        ((1, 1), TERMS + 1, 4, jnp.float32, False),
        ((1, 1), TERMS, WIDEST + 1, jnp.float32, False),
    ],
    ids=["one row", "bfloat16", "two rows", "three rows", "no multiple", "wide"],
)
def test_one_or_two_rows_are_multiplied_by_blocks_where_that_is_fast(rows, width, features, dtype, blocks):
    module = DenseGeneral(features, use_bias=False, dtype=dtype)
    x = jax.random.normal(jax.random.PRNGKey(2), (*rows, width), dtype)
    variables = module.init(jax.random.PRNGKey(1), x)
    with read_in_loop("as stored"):
        assert ("optimization_barrier" in str(jax.make_jaxpr(module.apply)(variables, x))) == blocks
        found = module.apply(variables, x)
    expected = module.apply(variables, x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == jnp.float32 else 0.02)


def test_other_types_than_float32_are_not_turned():
    module = DenseGeneral(4, use_bias=False, dtype=jnp.bfloat16)
    x = jnp.ones((3, 5))
    variables = module.init(jax.random.PRNGKey(1), x)
    with read_in_loop("turned"):
        assert "optimization_barrier" not in str(jax.make_jaxpr(module.apply)(variables, x))


@pytest.mark.parametrize("order", ["as stored", "turned"])
def test_types_that_differ_meet_as_they_do_elsewhere(order):
    module = Attends(num_embeddings=7, features=TERMS, attend_dtype=jnp.bfloat16)
    query = jax.random.normal(jax.random.PRNGKey(2), (1, TERMS))
    variables = module.init(jax.random.PRNGKey(1), query)
    with read_in_loop(order):
        found = module.apply(variables, query)
    expected = module.apply(variables, query)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
