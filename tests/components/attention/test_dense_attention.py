"""The attention layers: parameters, old keywords, foreign attention functions, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import dense_attention
from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.masks import Causal
from flaxformer.components.positions.rotary import Rotary
from flaxformer.step import Step
from tests.contracts import models

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, models.WIDTH)), jnp.float32)


def initialised(layer, x=X):
    return layer.init(jax.random.key(0), x, x)["params"]


def shapes(layer):
    variables = jax.eval_shape(layer.init, jax.random.key(0), X, X)
    return {name: leaf["kernel"].shape for name, leaf in variables["params"].items()}


def test_fewer_key_heads_make_smaller_kernels():
    assert shapes(models.attention("grouped")) == {"query": (16, 16), "key": (16, 8), "value": (16, 8), "out": (16, 16)}
    split = shapes(models.attention("grouped", split_head_kernel=True))
    assert split == {"query": (16, 4, 4), "key": (16, 2, 4), "value": (16, 2, 4), "out": (4, 4, 16)}
    assert shapes(models.attention("multi_query"))["key"] == (16, 4)


def test_one_key_head_equals_multi_query():
    single, multi = models.attention("single"), models.attention("multi_query")
    params = initialised(single)
    np.testing.assert_allclose(
        single.apply({"params": params}, X, X, Causal()), multi.apply({"params": params}, X, X, Causal()), atol=1e-6
    )


def test_an_attention_function_without_a_mask_argument_gets_it_as_a_bias():
    def plain(query, key, value, bias=None, **options):
        return dot_product_attention(query, key, value, bias, **options)

    def maskless(query, key, value, bias, broadcast_dropout, rescale_logits, dropout_rng, dropout_rate,
                 enable_dropout, dtype, precision, use_extra_logit, float32_logits):  # fmt: skip
        assert bias is not None
        return dot_product_attention(query, key, value, bias, dtype=dtype)

    layer = models.attention()
    params, bias = initialised(layer), jnp.ones((1, 1, 5, 5))
    expected = layer.apply({"params": params}, X, X, Causal(), bias)
    for function in (plain, maskless):
        other = layer.clone(attention_fn=function)
        np.testing.assert_allclose(other.apply({"params": params}, X, X, Causal(), bias), expected, atol=1e-6)


def test_rotation_keeps_what_depends_on_distance_only():
    layer = models.attention(positions=Rotary())
    params = initialised(layer)
    step = Step(positions=jnp.arange(5)[None] + 7)
    np.testing.assert_allclose(
        layer.apply({"params": params}, X, X, Causal(), step=step),
        layer.apply({"params": params}, X, X, Causal()),
        atol=1e-5,
    )
    plain = models.attention().apply({"params": params}, X, X, Causal())
    assert not np.allclose(plain, layer.apply({"params": params}, X, X, Causal()), atol=1e-3)


def test_weights_can_be_captured_and_cost_nothing_otherwise():
    layer = models.attention(positions=Rotary())
    params = initialised(layer)
    output, captured = layer.apply({"params": params}, X, X, Causal(), mutable=["attention"])
    (weights,) = captured["attention"]["weights"]
    assert weights.shape == (2, models.HEADS, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(np.triu(weights[0, 0], 1), 0)
    np.testing.assert_array_equal(output, layer.apply({"params": params}, X, X, Causal()))
    assert "attention" not in layer.init(jax.random.key(0), X, X)


def test_dropout_is_drawn_only_when_enabled():
    layer = models.attention(dropout_rate=0.5)
    params = initialised(layer.clone(dropout_rate=0.0))
    off = layer.apply({"params": params}, X, X, enable_dropout=False)
    on = layer.apply({"params": params}, X, X, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(off, on)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": None, "num_heads": 3}, "num_heads=3 does not divide the 16 features"),
        ({"num_heads": 0}, "num_heads is 0; expected an integer of at least 1"),
        ({"positions": "rotary"}, "positions is 'rotary'; expected a position scheme"),
        ({"cache": "ring"}, "cache is 'ring'; expected a cache such as"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"kernels_to_fuse": "qk"}, "kernels_to_fuse is 'qk'; expected None, 'qkv' or 'kv'"),
        ({"kernels_to_fuse": "kv"}, "needs split_head_kernel=True and rescale_logits=True"),
        (
            {"kernels_to_fuse": "qkv", "split_head_kernel": True, "rescale_logits": True, "num_kv_heads": 2},
            "stacks equal kernels",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    options = {"num_heads": 4, "head_dim": 4, "use_bias": False} | options
    layer = dense_attention.MultiHeadDotProductAttention(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: layer.init(key, X, X), jax.random.key(0))


def test_calls_that_cannot_be_served_are_refused():
    layer = models.attention()
    params = initialised(layer)

    def call(*args, mutable=False, **keywords):
        return layer.apply({"params": params}, *args, mutable=mutable, **keywords)

    with pytest.raises(ValueError, match="decode=True and prefill=True were given together"):
        call(X, X, decode=True, prefill=True)
    for bias, kind in ((np.ones((1, 1, 5, 5), bool), "bool"), (Causal(), "Causal")):
        with pytest.raises(ValueError, match=f"bias is of type {kind}; expected numbers .* pass it as `mask`"):
            call(X, X, None, bias)
    with pytest.raises(ValueError, match="got precomputed_qkv; expected None"):
        call(X, X, precomputed_qkv=(X, X, X))
    later = Step.start(jnp.ones((1, 5), bool), 8).advance()
    with pytest.raises(ValueError, match="has no 'cached_key' in the collection 'cache'"):
        call(X[:, :1], X[:, :1], step=later, mutable=["cache"])
    with pytest.raises(ValueError, match="the collection 'cache' is not mutable; expected mutable="):
        call(X, X, step=Step.start(jnp.ones((1, 5), bool), 8))
    with pytest.raises(ValueError, match="the mask is a str; expected a symbolic mask such as"):
        call(X, X, "causal")
    with pytest.raises(ValueError, match="needs inputs_q and inputs_kv to be the same array object"):
        fused = models.attention(kernels_to_fuse="qkv", split_head_kernel=True, rescale_logits=True)
        jax.eval_shape(fused.init, jax.random.key(0), X, X + 1)
    with pytest.raises(TypeError, match="abstract class DenseAttention"):
        dense_attention.DenseAttention()


def test_a_cache_driven_by_keywords_refuses_what_does_not_fit():
    layer = models.attention()
    params = initialised(layer)
    _, cache = layer.apply({"params": params}, X, X, decode=True, mutable=["cache"])
    variables = {"params": params, **cache}
    with pytest.raises(ValueError, match="a decode step got keys of shape"):
        layer.apply(variables, X, X, decode=True, mutable=["cache"])
    with pytest.raises(ValueError, match="prefill got 3 tokens; expected 5"):
        layer.apply(variables, X[:, :3], X[:, :3], prefill=True, prefill_lengths=jnp.array([3, 3]), mutable=["cache"])
    with pytest.raises(ValueError, match="neither prefill_lengths nor a mask"):
        layer.apply(variables, X, X, prefill=True, mutable=["cache"])


def test_rows_must_be_a_multiple_of_the_encoded_batch():
    layer = models.attention()
    params = initialised(layer)
    step = Step.start(jnp.ones((1, 1), bool), 3).to_memory()
    rows = jnp.tile(X[:, :1], (2, 1, 1))[:3]
    with pytest.raises(ValueError, match="3 rows of queries meet 2 rows of encoder keys"):
        layer.apply({"params": params}, rows, X, step=step, mutable=["cross_cache"])


def test_quantised_attributes_are_refused_with_the_sentence_to_follow():
    layer = models.attention("multi_query", use_aqt=True, weight_params=object())
    with pytest.raises(ValueError, match="Quantised computation is retired"):
        jax.eval_shape(lambda key: layer.init(key, X, X), jax.random.key(0))
