"""A sink takes weight from the keys and gives nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.variants import Attend, Sinks
from tests.components.attention.variants.test_contract import qkv


def test_the_softmax_counts_one_more_logit_per_head():
    query, key, value = qkv()
    sinks = jnp.array([0.0, 1.0, -2.0, 3.0])
    logits = jnp.einsum("btnh,bsnh->bnts", query, key)
    more = jnp.concatenate([logits, jnp.broadcast_to(sinks[:, None, None], (2, 4, 6, 1))], -1)
    weights = jax.nn.softmax(more)[..., :-1]
    variables = {"params": {"sinks": sinks}}
    np.testing.assert_allclose(
        Sinks().apply(variables, query, key, value), jnp.einsum("bnts,bsnh->btnh", weights, value), atol=1e-6
    )
    np.testing.assert_allclose(Sinks().apply(variables, query, key, method="weights"), weights, atol=1e-6)


def test_sinks_start_as_the_fixed_extra_logit():
    query, key, value = qkv(4, 2)
    output, variables = Sinks(Attend(implementation="blockwise")).init_with_output(jax.random.key(0), query, key, value)
    assert variables["params_axes"]["sinks_axes"].names == ("heads",)
    np.testing.assert_allclose(output, dot_product_attention(query, key, value, use_extra_logit=True), atol=1e-5)
