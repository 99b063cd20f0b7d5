import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import memory_efficient_attention as efficient
from flaxformer.components.attention.attention_functions import dot_product_attention, dot_product_attention_multiquery
from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.attention.masks import Causal

B, T, S, N, H, V = 2, 6, 8, 4, 3, 5


def heads(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


QUERY, KEY, VALUE = heads(B, T, N, H), heads(B, S, N, H, seed=1), heads(B, S, N, V, seed=2)
CHUNKS = {"query_chunk_size": 3, "key_chunk_size": 4}


@pytest.mark.parametrize("bias", [None, (B, N, T, S), (1, N, T, S), (B, 1, 1, S), (T, S)])
@pytest.mark.parametrize("options", [{}, {"use_extra_logit": True, "rescale_logits": True}])
def test_multihead_is_plain_attention(bias, options):
    bias = None if bias is None else heads(*bias, seed=3)
    attended = efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, bias, **CHUNKS, **options)
    expected = dot_product_attention(QUERY, KEY, VALUE, bias, **options)
    np.testing.assert_allclose(attended, expected, atol=1e-6)


@pytest.mark.parametrize("bias", [None, (1, N, T, S), (B, 1, 1, S)])
def test_multiquery_is_plain_attention(bias):
    bias = None if bias is None else heads(*bias, seed=3)
    attended = efficient.dot_product_attention_multiquery(QUERY, KEY[:, :, 0], VALUE[:, :, 0], bias, **CHUNKS)
    expected = dot_product_attention_multiquery(QUERY, KEY[:, :, 0], VALUE[:, :, 0], bias)
    np.testing.assert_allclose(attended, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch):
    query, key, value = heads(*batch, T, N, H), heads(*batch, S, N, H, seed=1), heads(*batch, S, N, V, seed=2)
    bias = heads(*[1] * len(batch), N, T, S, seed=3)
    attended = efficient.dot_product_attention_multihead(query, key, value, bias)
    np.testing.assert_allclose(attended, dot_product_attention(query, key, value, bias), atol=1e-6)


def test_causal_mask_hides_later_keys_also_where_query_chunks_are_larger():
    attended = efficient.dot_product_attention_multihead(
        QUERY, KEY, VALUE, causal_mask=True, query_chunk_size=6, key_chunk_size=2
    )
    expected = dot_product_attention(QUERY, KEY, VALUE, efficient._causal_bias(T, S)[None, None])
    np.testing.assert_allclose(attended, expected, atol=1e-6)
    masked = efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, mask=Causal(), **CHUNKS)
    np.testing.assert_allclose(attended, masked, atol=1e-6)


def test_causal_bias_counts_from_its_offset():
    whole = efficient._causal_bias(4, 6)
    np.testing.assert_array_equal(whole, jnp.where(jnp.tri(4, 6, dtype=bool), 0, -1e6))
    np.testing.assert_array_equal(efficient._causal_bias(2, 6, offset=2, mask_to_bias_factor=1e6), whole[2:])


def test_bfloat16_with_float32_logits_or_bias_keeps_the_dtype_of_values():
    query, key, value = (x.astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE))
    attended = efficient.dot_product_attention_multihead(
        query, key, value, heads(1, N, T, S), float32_logits=True, dtype=jnp.bfloat16, **CHUNKS
    )
    assert attended.dtype == jnp.bfloat16
    expected = dot_product_attention(QUERY, KEY, VALUE, heads(1, N, T, S))
    np.testing.assert_allclose(attended.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_renormalises_what_survives(broadcast):
    rng = jax.random.key(0)
    weights = efficient.dot_product_attention_multihead(
        QUERY,
        KEY,
        jnp.broadcast_to(jnp.eye(S)[None, :, None, :], (B, S, N, S)),  # the values show the weights
        dropout_rng=rng,
        dropout_rate=0.4,
        broadcast_dropout=broadcast,
        **CHUNKS,
    ).swapaxes(1, 2)  # [B N T S]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    dropped = np.asarray(weights == 0)
    assert 0.2 < dropped.mean() < 0.6
    assert (dropped == dropped[:, :, :1]).all() == broadcast
    plain = efficient.dot_product_attention_multihead(
        QUERY, KEY, VALUE, dropout_rng=rng, dropout_rate=0.4, enable_dropout=False, **CHUNKS
    )
    np.testing.assert_allclose(plain, dot_product_attention(QUERY, KEY, VALUE), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"use_extra_logit": True}])
def test_rows_that_see_nothing_are_those_of_the_plain_function(options):
    mask = jnp.arange(S) < jnp.array([5, 0])[:, None, None, None]
    attended = efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, mask=mask, **CHUNKS, **options)
    expected = dot_product_attention(QUERY, KEY, VALUE, mask=mask, **options)
    np.testing.assert_allclose(attended, expected, atol=1e-6)


def test_lazy_biases_are_accepted():
    bias = TableBias(heads(N, 8), max_distance=6)
    attended = efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, bias, **CHUNKS)
    expected = dot_product_attention(QUERY, KEY, VALUE, bias.dense(T, S))
    np.testing.assert_allclose(attended, expected, atol=1e-6)


@pytest.mark.parametrize("side", ["query", "key"])
def test_chunks_must_divide_longer_lengths(side):
    with pytest.raises(ValueError, match=f"{side}_chunk_size is 5 .* expected a length that is a multiple"):
        efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, **{f"{side}_chunk_size": 5})


def test_bias_must_broadcast_to_the_scores():
    with pytest.raises(ValueError, match=r"bias has shape \(2, 4, 1, 6, 7\); expected \(2, 4, 1, 6, 8\)"):
        efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, heads(B, N, T, S - 1))


def test_dropout_without_a_key_is_refused():
    with pytest.raises(ValueError, match="dropout_rng is None; expected a random key"):
        efficient.dot_product_attention_multihead(QUERY, KEY, VALUE, dropout_rate=0.1)
