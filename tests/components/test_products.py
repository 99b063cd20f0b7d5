"""Weights first: the same products, taken by modules that are asked for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.dense import DenseGeneral
from flaxformer.components.embedding import Embed
from flaxformer.components.products import weights_first, weights_times_rows


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_it_is_the_product_of_rows_with_the_transposed_weights(shape):
    key = jax.random.PRNGKey(0)
    rows, weights = jax.random.normal(key, shape), jax.random.normal(key, (7, 5))
    found = jax.jit(weights_times_rows)(rows, weights)
    assert found.shape == (*shape[:-1], 7)
    np.testing.assert_allclose(found, np.asarray(rows) @ np.asarray(weights).T, atol=1e-5)


def dense():
    return DenseGeneral((2, 4), use_bias=True, axis=(-2, -1)), jnp.ones((3, 5, 2, 6))


def split_kernel():
    return DenseGeneral((2, 4), use_bias=False, axis=(-2, -1), reshape_kernel=False), jnp.ones((3, 5, 2, 6))


class Attends(Embed):
    def __call__(self, query):
        return self.attend(query)


def table():
    return Attends(num_embeddings=7, features=6), jnp.ones((3, 5, 6))


@pytest.mark.parametrize(("make", "turned"), [(dense, True), (table, True), (split_kernel, False)])
def test_modules_take_weights_first_only_where_asked(make, turned):
    module, x = make()
    variables = module.init(jax.random.PRNGKey(1), x)
    x = jax.random.normal(jax.random.PRNGKey(2), x.shape)
    plain = jax.make_jaxpr(module.apply)(variables, x)
    with weights_first():
        asked = jax.make_jaxpr(module.apply)(variables, x)
        found = module.apply(variables, x)
    assert ("optimization_barrier" in str(asked)) == turned
    assert "optimization_barrier" not in str(plain)
    np.testing.assert_allclose(found, module.apply(variables, x), atol=1e-5)


def test_other_types_than_float32_keep_their_products():
    module = DenseGeneral(4, use_bias=False, dtype=jnp.bfloat16)
    x = jnp.ones((3, 5))
    variables = module.init(jax.random.PRNGKey(1), x)
    with weights_first():
        assert "optimization_barrier" not in str(jax.make_jaxpr(module.apply)(variables, x))
