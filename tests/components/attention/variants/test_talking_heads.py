"""Heads that mix."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants import TalkingHeads
from tests.components.attention.variants.test_contract import qkv


def test_untrained_heads_keep_to_themselves():
    query, key, value = qkv(4, 2)
    output, variables = TalkingHeads().init_with_output(jax.random.key(0), query, key, value, mask=Causal())
    np.testing.assert_allclose(output, dot_product_attention(query, key, value, mask=Causal()), atol=1e-6)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"mix_logits": (4, 4), "mix_weights": (4, 4)}


def test_heads_mix_before_the_bias_and_after_the_softmax():
    query, key, value = qkv()
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=(2, 4, 4)).astype("f4")
    bias = rng.normal(size=(1, 4, 6, 6)).astype("f4")
    logits = np.einsum("btnh,bsnh,nm->bmts", query, key, before) + bias
    weights = np.einsum("bnts,nm->bmts", jax.nn.softmax(np.where(np.tri(6, dtype=bool), logits, -1e10)), after)
    output = TalkingHeads().apply(
        {"params": {"mix_logits": before, "mix_weights": after}}, query, key, value, bias, mask=Causal()
    )
    np.testing.assert_allclose(output, np.einsum("bnts,bsnh->btnh", weights, value), atol=1e-5)
