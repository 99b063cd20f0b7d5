"""What every attention function promises: cached decoding, gradients, half precision, grouped heads, its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import variants
from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.attention.masks import Causal, Padding
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.positions.rotary import Rotary
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

RNG = np.random.default_rng(0)
ROW = jnp.asarray(RNG.normal(size=(ROWS, TOTAL, models.WIDTH)), jnp.float32)
NORMAL = jax.nn.initializers.normal(0.5)

FUNCTIONS = {
    "attend": variants.Attend(),
    "softcap": variants.Attend(softcap=0.5, scale=0.7),
    "blockwise": variants.Attend(implementation="blockwise"),
    "sinks": variants.Sinks(sinks_init=NORMAL),
    "talking heads": variants.TalkingHeads(NORMAL, NORMAL),
    "sigmoid": variants.Sigmoid(),
    "differential": variants.Differential(),
    "hashing": variants.Lsh(buckets=2, rounds=2),
}
LAYERS = {name: models.attention(attention_fn=function) for name, function in FUNCTIONS.items()} | {
    "unit norm": models.attention(q_norm=variants.UnitNorm(scale=3.0), k_norm=variants.UnitNorm(), positions=Rotary()),
    "rms norm": models.attention(
        q_norm=T5LayerNorm(scale_axis_name="kv"), k_norm=T5LayerNorm(scale_axis_name="kv"), rescale_logits=True
    ),
    "grouped sinks": models.attention("grouped", attention_fn=variants.Sinks(sinks_init=NORMAL)),
    "grouped differential": models.attention("grouped", attention_fn=variants.Differential(), num_heads=8),
    "multi-query sigmoid": models.attention("multi_query", attention_fn=variants.Sigmoid()),
    "multi-query talking heads": models.attention("multi_query", attention_fn=variants.TalkingHeads(NORMAL, NORMAL)),
}
SLOW = {"attend", "rms norm", "grouped sinks", "multi-query sigmoid", "multi-query talking heads"}
SWEEP = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYERS]


def params_of(layer):
    return layer.init(jax.random.key(0), ROW, ROW)["params"]


def qkv(heads=4, kv_heads=4, length=6):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=(2, length, n, 4)), jnp.float32) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("name", SWEEP)
def test_cached_equals_uncached_and_half_precision_is_close(name):
    layer = LAYERS[name]
    params = params_of(layer)
    expected = np.asarray(jax.jit(lambda x: layer.apply({"params": params}, x, x, Causal()))(ROW))

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    for b, output in enumerate(run_cached(call, ROW, "left", (2, 1))):
        np.testing.assert_allclose(output, expected[b, : len(output)], atol=3e-5, rtol=3e-5)
    half = layer.clone(dtype="bfloat16").apply({"params": params}, ROW, ROW, Causal())
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("name", SWEEP)
def test_every_parameter_and_input_has_a_finite_gradient_even_where_nothing_is_seen(name):
    layer = LAYERS[name]
    mask = Causal() & Padding(None, jnp.arange(TOTAL)[None] > 0)  # query 0 sees nothing

    def loss(params, x):
        return jnp.sum(layer.apply({"params": params}, x, x, mask) ** 2)

    gradients = jax.jit(jax.grad(loss, (0, 1)))(params_of(layer), ROW)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "differential"])
def test_weights_times_values_are_the_output(name):
    layer = LAYERS[name].clone(output_projection=False, rescale_logits=name != "softcap")
    params = params_of(layer)
    output, captured = layer.apply({"params": params}, ROW, ROW, Causal(), mutable=["attention"])
    (weights,) = captured["attention"]["weights"]
    assert weights.shape == (ROWS, models.HEADS, TOTAL, TOTAL)
    value = (ROW @ params["value"]["kernel"]).reshape(ROWS, TOTAL, models.HEADS, models.HEAD_DIM)
    np.testing.assert_allclose(jnp.einsum("bnts,bsnh->btnh", weights, value), output, atol=1e-5)


@pytest.mark.parametrize("name", ["attend", "sinks", "differential"])
def test_a_lazy_bias_equals_its_array(name):
    layer = LAYERS[name]
    assert layer.takes_lazy_bias and not models.attention().takes_lazy_bias
    params, bias = params_of(layer), TableBias(jax.random.normal(jax.random.key(1), (models.HEADS, 8)))
    lazy = layer.apply({"params": params}, ROW, ROW, Causal(), bias)
    np.testing.assert_allclose(
        lazy, layer.apply({"params": params}, ROW, ROW, Causal(), bias.dense(TOTAL, TOTAL)), atol=1e-6
    )


@pytest.mark.parametrize("name", ["softcap", "talking heads", "sigmoid", "differential"])
def test_dropout_is_drawn_only_when_enabled(name):
    layer = LAYERS[name].clone(dropout_rate=0.5)
    params = params_of(LAYERS[name])
    off = layer.apply({"params": params}, ROW, ROW, enable_dropout=False)
    np.testing.assert_array_equal(off, LAYERS[name].apply({"params": params}, ROW, ROW))
    assert not np.allclose(off, layer.apply({"params": params}, ROW, ROW, rngs={"dropout": jax.random.key(1)}))
