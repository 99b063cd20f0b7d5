"""Sigmoid attention weighs each key for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants import Sigmoid
from tests.components.attention.variants.test_contract import qkv


def test_each_key_has_a_weight_of_its_own():
    query, key, value = qkv()
    bias = jax.random.normal(jax.random.key(1), (1, 4, 6, 6))
    weights = jax.nn.sigmoid(jnp.einsum("btnh,bsnh->bnts", query, key) + bias - np.log(20))
    expected = jnp.einsum("bnts,bsnh->btnh", weights, value)
    np.testing.assert_allclose(Sigmoid(length=20)(query, key, value, bias), expected, atol=1e-6)


def test_without_a_length_a_query_counts_the_keys_it_sees():
    query, key, _ = qkv()
    zero = jnp.zeros_like(query)
    np.testing.assert_allclose(Sigmoid().weights(zero, key), 1 / 7, atol=1e-6)  # sigmoid(-log 6)
    weights = Sigmoid().weights(zero, key, mask=Causal())
    np.testing.assert_allclose(weights[0, 0], np.tri(6) / (np.arange(6)[:, None] + 2), atol=1e-6)


def test_a_query_that_sees_nothing_attends_to_nothing():
    query, key, value = qkv()
    mask = jnp.ones((2, 1, 6, 6), bool).at[:, :, 2].set(False)
    assert not np.any(Sigmoid()(query, key, value, mask=mask)[:, 2])


def test_an_extra_logit_is_refused():
    with pytest.raises(ValueError, match="use_extra_logit=True and sigmoid attention; expected False"):
        Sigmoid()(*qkv(), use_extra_logit=True)
