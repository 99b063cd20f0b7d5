"""The definition of attention: groups of heads, masks, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import attention_functions as functions
from flaxformer.components.attention.masks import Causal, Padding


def heads(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_equal_repeated_heads(kv_heads):
    query, key, value = heads(2, 5, 4, 3), heads(2, 6, kv_heads, 3, seed=1), heads(2, 6, kv_heads, 3, seed=2)
    repeated = [jnp.repeat(x, 4 // kv_heads, axis=-2) for x in (key, value)]
    expected = functions.dot_product_attention(query, *repeated)
    np.testing.assert_allclose(functions.dot_product_attention(query, key, value), expected, atol=1e-6)


def test_multiquery_equals_one_head_without_its_axis():
    query, key, value = heads(2, 5, 4, 3), heads(2, 6, 3, seed=1), heads(2, 6, 3, seed=2)
    expected = functions.dot_product_attention(query, key[..., None, :], value[..., None, :])
    np.testing.assert_array_equal(functions.dot_product_attention_multiquery(query, key, value), expected)


def test_a_mask_equals_a_large_negative_bias():
    query, key, value = heads(2, 5, 4, 3), heads(2, 5, 4, 3, seed=1), heads(2, 5, 4, 3, seed=2)
    bias = jnp.where(Causal().dense(5, 5), 0.0, -1e10)
    expected = functions.dot_product_attention(query, key, value, bias)
    for mask in (Causal(), Causal().dense(5, 5), Causal().dense(5, 5).astype(jnp.float32)):
        np.testing.assert_allclose(functions.dot_product_attention(query, key, value, mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_row_that_sees_nothing_is_finite_forward_and_backward(dtype):
    query, key, value = (heads(1, 3, 2, 4, seed=i).astype(dtype) for i in range(3))
    nothing = Padding(None, jnp.zeros((1, 3), bool))

    def total(query, extra):
        x = functions.dot_product_attention(query, key, value, mask=nothing, use_extra_logit=extra, dtype=dtype)
        return x.astype(jnp.float32).sum(), x

    for extra, expected in ((False, value.mean(1, keepdims=True)), (True, jnp.zeros_like(value))):
        gradient, x = jax.grad(total, has_aux=True)(query, extra)
        assert np.isfinite(gradient.astype(np.float32)).all()
        np.testing.assert_allclose(x.astype(np.float32), np.broadcast_to(expected, x.shape), atol=1e-2)


def test_dropout_keeps_the_expected_value_and_broadcasts_over_queries():
    query, key = heads(1, 8, 2, 3), heads(1, 200, 2, 3, seed=1)
    options = {"dropout_rng": jax.random.key(0), "dropout_rate": 0.25}
    weights = functions.dot_product_attention_weights(query, key, **options)
    dropped = weights == 0
    assert (dropped == dropped[:, :, :1]).all()
    assert abs(float(dropped.mean()) - 0.25) < 0.06
    plain = functions.dot_product_attention_weights(query, key, **options, enable_dropout=False)
    np.testing.assert_allclose(weights[~dropped], (plain / 0.75)[~dropped], rtol=1e-5)
    apart = functions.dot_product_attention_weights(query, key, **options, broadcast_dropout=False) == 0
    assert not (apart == apart[:, :, :1]).all()


def test_the_two_ways_to_rescale_agree_and_exclude_each_other():
    query, key, value = heads(1, 3, 2, 4), heads(1, 3, 2, 4, seed=1), heads(1, 3, 2, 4, seed=2)
    first = functions.dot_product_attention(query, key, value, rescale_logits=True)
    np.testing.assert_allclose(
        functions.dot_product_attention(query, key, value, rescale_weights=True), first, atol=1e-6
    )
    with pytest.raises(ValueError, match="rescale_logits and rescale_weights are both True"):
        functions.dot_product_attention(query, key, value, rescale_logits=True, rescale_weights=True)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        ((2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), "expected equal ranks"),
        ((3, 4), (3, 4), (3, 4), "expected equal ranks of 3 or more"),
        ((1, 3, 2, 4), (2, 3, 2, 4), (2, 3, 2, 4), "expected equal batch axes"),
        ((1, 3, 2, 4), (1, 3, 2, 5), (1, 3, 2, 5), "expected the same last axis"),
        ((1, 3, 3, 4), (1, 3, 2, 4), (1, 3, 2, 4), "expected a multiple of the key's heads"),
        ((1, 3, 2, 4), (1, 3, 2, 4), (1, 4, 2, 4), "expected them to agree in all but the last axis"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(query, key, value, message):
    with pytest.raises(ValueError, match=message):
        functions.dot_product_attention(heads(*query), heads(*key), heads(*value))


def test_dropout_without_a_key_is_refused():
    x = heads(1, 3, 2, 4)
    with pytest.raises(ValueError, match="got no dropout_rng"):
        functions.dot_product_attention(x, x, x, dropout_rate=0.1)
