import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.local_attention import LocalAttentionLayer
from flaxformer.components.attention.masks import Causal
from flaxformer.step import Step

B, D = 2, 4


class Mean(nn.Module):
    """Averages the visible keys, weighted by the exponential of the bias: attention without projections."""

    @nn.compact
    def __call__(self, inputs_q, inputs_kv, mask=None, bias=None, enable_dropout=True):
        weights = jnp.ones((inputs_q.shape[0], inputs_q.shape[-2], inputs_kv.shape[-2]))
        if mask is not None:
            weights *= mask[:, 0] > 0
        if bias is not None:
            weights *= jnp.exp(bias[:, 0])
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * (weights / weights.sum(-1, keepdims=True)) @ inputs_kv


def inputs(length, seed=0):
    return jnp.asarray(np.random.RandomState(seed).randn(B, length, D), jnp.float32)


def layer(q_width=2, q_stride=2, kv_width=2, kv_stride=2, **options):
    return LocalAttentionLayer(Mean(), q_width, q_stride, kv_width, kv_stride, **options)


def attend(module, *args, **kwargs):
    return module.apply({"params": {"localized_attention": {"scale": jnp.float32(1)}}}, *args, **kwargs)


def masked_mean(weights, keys):
    weights = np.broadcast_to(np.asarray(weights, np.float32), (B, *np.shape(weights)[-2:]))
    return weights / weights.sum(-1, keepdims=True) @ np.asarray(keys)


def picture(*rows):
    return np.array([[c == "x" for c in row] for row in rows])


def test_chunks_see_their_own_keys_only():
    q, kv = inputs(5), inputs(5, seed=1)
    expected = masked_mean(picture("xx...", "xx...", "..xx.", "..xx.", "....x"), kv)
    np.testing.assert_allclose(attend(layer(), q, kv), expected, atol=1e-6)


def test_key_chunks_may_overlap_and_have_another_length():
    q, kv = inputs(4), inputs(6, seed=1)
    expected = masked_mean(picture("xxxx..", "xxxx..", "...xxx", "...xxx"), kv)
    np.testing.assert_allclose(attend(layer(kv_width=4, kv_stride=3), q, kv), expected, atol=1e-6)


def test_first_key_can_be_seen_by_all():
    q, kv = inputs(4), inputs(4, seed=1)
    weights = np.array([[2, 1, 0, 0], [2, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]])  # the first chunk has key 0 twice
    actual = attend(layer(always_attend_to_first_position=True), q, kv)
    np.testing.assert_allclose(actual, masked_mean(weights, kv), atol=1e-6)


def test_first_query_can_see_all():
    q, kv = inputs(5), inputs(4, seed=1)
    expected = masked_mean(picture("xxxx", "xx..", "xx..", "..xx", "..xx"), kv)
    np.testing.assert_allclose(attend(layer(first_position_attends_to_all=True), q, kv), expected, atol=1e-6)


@pytest.mark.parametrize("first", [False, True])
def test_mask_and_bias_are_cut_like_the_chunks(first):
    q, kv = inputs(4), inputs(4, seed=1)
    bias = np.random.RandomState(2).randn(1, 1, 4, 4).astype("float32")
    weights = np.tri(4) * np.exp(bias[0, 0])
    chunks = np.kron(np.eye(2), np.ones((2, 2)))
    if first:
        chunks[:, 0] += 1
    expected = masked_mean(weights * chunks, kv)
    module = layer(always_attend_to_first_position=first)
    for mask in (np.broadcast_to(np.tri(4), (B, 1, 4, 4)), Causal()):
        np.testing.assert_allclose(attend(module, q, kv, mask, bias), expected, atol=1e-5)


def test_masks_of_one_row_serve_all_queries():
    q, kv = inputs(4), inputs(4, seed=1)
    mask = jnp.array([1.0, 0, 1, 1])[None, None, None]
    expected = masked_mean(picture("x...", "x...", "..xx", "..xx"), kv)
    np.testing.assert_allclose(attend(layer(), q, kv, mask), expected, atol=1e-6)


def test_overlapping_query_chunks_lengthen_the_output():
    q, kv = inputs(4), inputs(4, seed=1)
    assert attend(layer(q_width=3, kv_width=3), q, kv).shape == (B, 5, D)


def test_chunks_share_parameters():
    variables = layer().init(jax.random.key(0), inputs(4), inputs(4))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"localized_attention": {"scale": ()}}}


@pytest.mark.parametrize(("side", "options"), [("q", {"q_stride": 3}), ("kv", {"kv_stride": 3})])
def test_gaps_between_chunks_are_refused(side, options):
    with pytest.raises(ValueError, match=f"{side}_chunk_stride is 3 and {side}_chunk_width 2"):
        layer(**options)


def test_chunks_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="4 queries make 2 chunks .* and 6 keys make 3 chunks"):
        attend(layer(), inputs(4), inputs(6))


@pytest.mark.parametrize("call", [{"decode": True}, {"step": Step.start(jnp.ones((B, 4), bool), 8)}])
def test_caches_are_refused(call):
    with pytest.raises(ValueError, match="expected neither"):
        attend(layer(), inputs(4), inputs(4), **call)
