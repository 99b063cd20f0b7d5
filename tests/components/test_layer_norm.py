import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxformer.components.convolution import Depthwise1dConv
from flaxformer.components.layer_norm import LayerNorm, T5LayerNorm
from flaxformer.step import Step

X = jax.random.normal(jax.random.key(0), (2, 5, 4)) * 3 + 1


def test_t5_norm_divides_by_the_root_mean_square():
    y, _ = T5LayerNorm(epsilon=0.0).init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(jnp.mean(jnp.square(y), axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(y, X / np.sqrt(np.mean(np.square(X), -1, keepdims=True)), atol=1e-5)


def test_t5_norm_equals_linen_rms_norm():
    params = {"scale": jnp.array([0.5, 1.0, 2.0, -1.0])}
    y = T5LayerNorm().apply({"params": params}, X)
    np.testing.assert_allclose(y, nn.RMSNorm(epsilon=1e-6).apply({"params": params}, X), atol=1e-6)


def test_centred_scale_starts_at_zero_and_acts_as_one():
    norm = T5LayerNorm(center_scale_at_zero=True, scale_init=nn.initializers.constant(9.0))
    y, variables = norm.init_with_output(jax.random.key(0), X)
    assert not variables["params"]["scale"].any()
    np.testing.assert_array_equal(y, T5LayerNorm(use_scale=False).apply({}, X))


@pytest.mark.parametrize("norm", [T5LayerNorm, LayerNorm])
def test_output_has_the_dtype_asked_for_and_parameters_are_float32(norm):
    y, variables = norm(dtype="bfloat16", scale_axis_name="width").init_with_output(jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert variables["params_axes"]["scale_axes"].names == ("width",)


@pytest.mark.parametrize("norm", [T5LayerNorm, LayerNorm])
def test_mean_is_taken_in_float32(norm):
    x = (X * 1e3).astype(jnp.float16)
    y, _ = norm(dtype=jnp.float16).init_with_output(jax.random.key(0), x)
    assert jnp.isfinite(y).all()


def test_layer_norm_equals_linen_layer_norm():
    params = {"scale": jnp.array([0.5, 1.0, 2.0, -1.0]), "bias": jnp.arange(4.0)}
    y = LayerNorm().apply({"params": params}, X)
    np.testing.assert_allclose(y, nn.LayerNorm(epsilon=1e-6).apply({"params": params}, X), atol=1e-5)


@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, False), (False, True), (False, False)])
def test_layer_norm_makes_only_the_parameters_asked_for(use_scale, use_bias):
    variables = LayerNorm(use_scale=use_scale, use_bias=use_bias).init(jax.random.key(0), X)
    wanted = [name for name, used in (("scale", use_scale), ("bias", use_bias)) if used]
    assert sorted(variables.get("params", {})) == sorted(wanted)


def test_convolution_of_the_norm_continues_from_its_cache():
    norm = T5LayerNorm(conv=Depthwise1dConv(axis_names=("embed",)))
    full, variables = norm.init_with_output(jax.random.key(0), X)
    params = {"params": variables["params"]}
    step = Step.start(jnp.ones((1, 3), bool), cache_length=5)
    first, cache = norm.apply(params, X[:, :3], step=step, mutable=["cache"])
    rest, _ = norm.apply(params | cache, X[:, 3:], step=step.advance(2), mutable=["cache"])
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), full, atol=1e-6)


def test_keywords_reach_the_convolution():
    norm = T5LayerNorm(conv=Depthwise1dConv(axis_names=("embed",)))
    variables = norm.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="without prefill_lengths"):
        norm.apply(variables, X, prefill=True, mutable=["cache"])
