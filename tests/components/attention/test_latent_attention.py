"""Multi-head latent attention: decoding over latents equals attention of all heads, at the size of the latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import variants
from flaxformer.components.attention.caches import QuantizedCache, RingCache
from flaxformer.components.attention.latent_attention import MultiHeadLatentAttention
from flaxformer.components.attention.masks import Causal, Window
from flaxformer.components.positions.rotary import Rotary
from flaxformer.step import Step
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, TOTAL, models.WIDTH)), jnp.float32)


def latent(**options):
    return MultiHeadLatentAttention(**{"num_heads": 4, "latent_width": 6, "head_dim": 5, "rotary_dim": 2} | options)


def params_of(layer):
    return layer.init(jax.random.key(0), X, X)["params"]


def test_it_is_attention_over_heads_made_from_latents():
    layer = latent(value_dim=3, query_latent_width=7)
    params = params_of(layer)
    assert jax.tree.map(jnp.shape, params) == {
        "query_down": {"kernel": (16, 7)},
        "query_norm": {"scale": (7,)},
        "query_up": (7, 4, 7),
        "key_value_down": {"kernel": (16, 6)},
        "key_value_norm": {"scale": (6,)},
        "rotary_key_down": {"kernel": (16, 2)},
        "key_up": (6, 4, 5),
        "value_up": (6, 4, 3),
        "out": {"kernel": (12, 16)},
    }

    def norm(x):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)

    rotate, positions = Rotary().rotate, jnp.arange(TOTAL)[None]
    query = jnp.einsum("btl,lnh->btnh", norm(X @ params["query_down"]["kernel"]), params["query_up"])
    query = jnp.concatenate([query[..., :5], rotate(query[..., 5:], positions)], -1)
    c = norm(X @ params["key_value_down"]["kernel"])
    rotated = rotate((X @ params["rotary_key_down"]["kernel"])[:, :, None], positions)
    key = jnp.concatenate(
        [jnp.einsum("bsl,lnh->bsnh", c, params["key_up"]), jnp.repeat(rotated, 4, axis=2)], -1
    )  # fmt: skip
    value = jnp.einsum("bsl,lnv->bsnv", c, params["value_up"])
    logits = jnp.where(np.tri(TOTAL, dtype=bool), jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(7), -1e10)
    x = jnp.einsum("bnts,bsnv->btnv", jax.nn.softmax(logits), value).reshape(ROWS, TOTAL, 12)
    expected = x @ params["out"]["kernel"]
    np.testing.assert_allclose(layer.apply({"params": params}, X, X, Causal()), expected, atol=1e-5)


FUNCTIONS = {
    "plain": latent(),
    "windowed, compressed queries": latent(value_dim=3, query_latent_width=7, reach=Window(left=2)),
    "softcap": latent(attention_fn=variants.Attend(softcap=2.0)),
    "sinks": latent(attention_fn=variants.Sinks(sinks_init=jax.nn.initializers.normal(1.0))),
    "bias": latent(use_bias=True, bias_init=jax.nn.initializers.normal(1.0)),
}


@pytest.mark.parametrize("name", ["windowed, compressed queries", "sinks", "bias"])
def test_queries_brought_to_latents_equal_keys_and_values_made(name):
    layer = FUNCTIONS[name]
    params = params_of(layer)

    def run(absorb):
        def loss(params):
            x = layer.clone(absorb=absorb).apply({"params": params}, X, X, Causal())
            return jnp.sum(x**2), x

        (_, x), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return x, gradients

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), run(True), run(False))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("plain", "bfloat16"),
        *((name, "float32") for name in ("plain", "windowed, compressed queries", "sinks")),
        *(pytest.param(name, "float32", marks=pytest.mark.slow) for name in ("softcap", "bias")),
    ],
)
def test_cached_equals_uncached(name, dtype):
    layer = FUNCTIONS[name].clone(dtype=dtype)
    params, tolerance = params_of(layer), {"float32": 3e-5, "bfloat16": 5e-2}[dtype]
    expected = np.asarray(layer.apply({"params": params}, X, X, Causal()), np.float32)

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    sides = [("left", (2, 1)), ("right", (1, 1, 1))] if dtype == "float32" else [("left", (2, 1))]
    for side, chunks in sides:
        for b, output in enumerate(run_cached(call, X, side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=tolerance, rtol=tolerance)


def test_t5x_decoding_equals_a_forward_pass():
    layer = latent()
    params = params_of(layer)
    expected = layer.apply({"params": params}, X, X, Causal())
    _, state = layer.apply({"params": params}, X, X, decode=True, mutable=["cache"])
    for t in range(3):
        x = X[:, t : t + 1]
        output, state = layer.apply({"params": params, **state}, x, x, decode=True, mutable=["cache"])
        np.testing.assert_allclose(output[:, 0], expected[:, t], atol=1e-5)


def test_the_cache_holds_a_latent_and_a_rotated_key_per_token():
    """DeepSeek-V2's sizes: 576 numbers per token and layer, where keys and values of its heads are 40960."""
    layer = latent(num_heads=128, latent_width=512, head_dim=128, rotary_dim=64, query_latent_width=1536)
    step, x = Step.start(jnp.ones((1, 4), bool), 10), jax.ShapeDtypeStruct((1, 4, 256), jnp.float32)
    variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, x), x)

    def prefill(params, x):
        return layer.apply({"params": params}, x, x, Causal(), step=step, mutable=["cache"])

    _, state = jax.eval_shape(prefill, variables["params"], x)
    shapes = {name: leaf.shape for name, leaf in state["cache"].items()}
    assert shapes == {"cached_key": (1, 1, 64, 10), "cached_value": (1, 1, 512, 10)}


@pytest.mark.slow
def test_latents_are_kept_in_any_kind_of_cache():
    layer = latent(reach=Window(left=2))
    params = params_of(layer)
    expected = layer.apply({"params": params}, X, X, Causal())
    for cache, tolerance in ((RingCache(window=3), 3e-5), (QuantizedCache(), 0.1)):
        kept = layer.clone(cache=cache)

        def call(x, step, collections, apply=kept.apply):
            return apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

        for b, output in enumerate(run_cached(jax.jit(call), X, "left", (2, 1))):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=tolerance)


def test_a_step_makes_no_keys_or_values():
    layer = latent(num_heads=16, latent_width=8, head_dim=16, rotary_dim=2)
    params = params_of(layer)
    step = Step.start(jnp.ones((1, TOTAL), bool), 64)
    _, state = layer.apply({"params": params}, X, X, Causal(), step=step, mutable=["cache"])
    later, x = step.advance(), X[:, :1]

    def decode(layer):
        def run(params, x):
            return layer.apply({"params": params, **state}, x, x, Causal(), step=later, mutable=["cache"])

        program = jax.make_jaxpr(run)(params, x).jaxpr
        return max(np.prod(v.aval.shape) for e in program.eqns for v in e.outvars)

    assert decode(layer) < 64 * 16 * 16 * ROWS <= decode(layer.clone(absorb=False))


def test_cross_attention_is_refused():
    step = Step.start(jnp.ones((1, 1), bool), 3).to_memory()
    with pytest.raises(ValueError, match="precomputed_qkv or cached encoder outputs; expected self-attention"):
        latent().apply({"params": params_of(latent())}, X[:, :1], X, step=step, mutable=["cross_cache"])
