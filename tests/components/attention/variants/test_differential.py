"""Differential attention as its paper writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.attention_functions import dot_product_attention, dot_product_attention_weights
from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants import Differential
from tests.components.attention.variants.test_contract import qkv


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 4), (12, 4)])
def test_it_is_the_difference_of_two_maps_over_joined_values(heads, kv_heads):
    query, key, value = qkv(heads, kv_heads)
    layer = Differential(lambda_init=0.3)
    output, variables = layer.init_with_output(jax.random.key(0), query, key, value, mask=Causal(), rescale_logits=True)
    params = variables["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "lambda_q1": (4,), "lambda_k1": (4,), "lambda_q2": (4,), "lambda_k2": (4,), "norm": {"scale": (8,)}
    }  # fmt: skip
    first, second = (np.exp(params[f"lambda_q{i}"] @ params[f"lambda_k{i}"]) for i in (1, 2))
    groups = heads // kv_heads
    keys = np.repeat(key, groups, 2)  # [B S N H]
    values = np.repeat(np.reshape(value, (2, 6, kv_heads // 2, 8)), groups, 2)  # [B S N/2 2H]
    logits = np.where(np.tri(6, dtype=bool), np.einsum("btnh,bsnh->bnts", query, keys) / 2, -1e10)
    maps = np.asarray(jax.nn.softmax(logits))
    x = np.einsum("bnts,bsnv->btnv", maps[:, ::2] - (first - second + 0.3) * maps[:, 1::2], values)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * (1 - 0.3)
    np.testing.assert_allclose(output, x.reshape(2, 6, heads, 4), atol=2e-5)


def test_it_tells_the_weights_of_its_single_heads():
    query, key, value = qkv()
    params = Differential().init(jax.random.key(0), query, key, value)
    expected = dot_product_attention_weights(query, key, mask=Causal())
    for layer in (Differential(), Differential(attend=dot_product_attention)):
        weights = layer.apply(params, query, key, mask=Causal(), method="weights")
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert Differential().takes_lazy_bias and not Differential(attend=dot_product_attention).takes_lazy_bias


def test_key_heads_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="got 1 key heads; expected an even number"):
        Differential().init(jax.random.key(0), *qkv(4, 1))
