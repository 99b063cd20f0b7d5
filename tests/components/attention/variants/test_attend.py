"""`Attend` equals the layers' own function, and lets a T5 stack keep its bias a rule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants import Attend, Sinks
from flaxformer.step import Step
from tests.components.attention.variants.test_contract import ROW, params_of, qkv
from tests.contracts import models

BLOCKWISE = Attend(implementation="blockwise")


@pytest.mark.parametrize("kind", ["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize("options", [{}, {"rescale_logits": True, "use_extra_logit": True}], ids=["plain", "scaled"])
def test_equals_the_function_that_layers_use(kind, options):
    layer = models.attention(kind, **options)
    params, bias = params_of(layer), jax.random.normal(jax.random.key(1), (1, models.HEADS, *ROW.shape[1:2] * 2))
    expected = layer.apply({"params": params}, ROW, ROW, Causal(), bias)
    output = layer.clone(attention_fn=Attend()).apply({"params": params}, ROW, ROW, Causal(), bias)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_softcap_bends_the_scaled_products_before_the_bias_is_added():
    query, key, value = qkv()
    bias = jax.random.normal(jax.random.key(1), (1, 4, 6, 6))
    logits = 2.0 * jnp.tanh(0.3 * jnp.einsum("btnh,bsnh->bnts", query, key) / 2.0) + bias
    expected = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), value)
    np.testing.assert_allclose(Attend(scale=0.3, softcap=2.0)(query, key, value, bias), expected, atol=1e-5)


def test_a_query_that_sees_nothing_attends_to_nothing():
    query, key, value = qkv()
    mask = jnp.ones((2, 1, 6, 6), bool).at[:, :, 2].set(False)
    assert not np.any(Attend()(query, key, value, mask=mask)[:, 2])
    assert np.any(dot_product_attention(query, key, value, mask=mask)[:, 2])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Attend)])
def test_every_field_changes_something(field):
    values = {"implementation": "blockwise", "scale": 0.5, "softcap": 1.0}

    def program(attend):
        return str(jax.make_jaxpr(attend)(*qkv()))

    assert program(Attend()) != program(Attend(**{field: values[field]}))


def test_contradictions_are_refused():
    query, key, value = qkv()
    with pytest.raises(ValueError, match="rescale_logits=True and its attention function scale=0.5; expected one"):
        Attend(scale=0.5)(query, key, value, rescale_logits=True)
    with pytest.raises(ValueError, match="use_extra_logit=True and its attention function learns sinks; expected one"):
        Sinks().init(jax.random.key(0), query, key, value, use_extra_logit=True)


def squares(jaxpr, size):
    """Shapes in a program, kernels included, of at least `size` numbers."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.shape for v in equation.outvars if np.prod(v.aval.shape, dtype=int) >= size}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            found |= squares(inner, size) if hasattr(inner, "eqns") else set()
    return found


def encoder(attention_fn):
    return models.encoder(make_attention=lambda: models.attention(attention_fn=attention_fn))


def decoder(attention_fn, per_layer_bias=False):
    return models.decoder_only(
        make_attention=lambda: models.attention(attention_fn=attention_fn), per_layer_bias=per_layer_bias, layers=1
    )


@pytest.mark.parametrize("model", [encoder, decoder, functools.partial(decoder, per_layer_bias=True)])
def test_a_long_stack_never_makes_the_square_of_scores_or_bias(model):
    length = 640

    def program(attention_fn):
        module = model(attention_fn)
        tokens = jnp.ones((1, length), jnp.int32)
        args = (tokens,) if model is encoder else (tokens, tokens)
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, enable_dropout=False))["params"]

        def loss(params):
            return jnp.sum(module.apply({"params": params}, *args, enable_dropout=False))

        return jax.make_jaxpr(jax.grad(loss))(params).jaxpr

    square = models.HEADS * length * length
    assert squares(program(dot_product_attention), square)
    assert not squares(program(BLOCKWISE), square)


@pytest.mark.slow
@pytest.mark.parametrize("per_layer", [False, True], ids=["shared bias", "bias per layer"])
def test_models_are_the_same_with_a_lazy_bias(per_layer):
    plain, lazy = decoder(dot_product_attention, per_layer), decoder(BLOCKWISE, per_layer)
    tokens = jnp.asarray(np.random.default_rng(2).integers(1, models.VOCABULARY, (2, 6)))
    params = plain.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]

    def run(model):
        def loss(params):
            logits = model.apply({"params": params}, tokens, tokens, enable_dropout=False)
            return jnp.sum(logits**2), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        step = Step.start(jnp.ones((1, 4), bool), 6)

        @jax.jit
        def call(tokens, step, kept):
            return model.apply({"params": params, **kept}, tokens, step=step, enable_dropout=False, mutable=["cache"])

        first, kept = call(tokens[:, :4], step, {})
        later, _ = call(tokens[:, 4:], step.advance(2), kept)
        np.testing.assert_allclose(jnp.concatenate([first, later], 1), logits, atol=3e-5, rtol=3e-5)
        return logits, gradients

    expected, output = run(plain), run(lazy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), output, expected)


@pytest.mark.slow
def test_t5x_decoding_keeps_its_cached_bias():
    plain, lazy = decoder(dot_product_attention), decoder(BLOCKWISE)
    tokens = jnp.asarray(np.random.default_rng(2).integers(1, models.VOCABULARY, (2, 5)))
    params = plain.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]
    outputs = []
    for model in (plain, lazy):
        options = {"enable_dropout": False, "decode": True, "max_decode_length": 5, "mutable": ["cache"]}
        _, state = model.apply({"params": params}, tokens, tokens, **options)
        logits, state = model.apply({"params": params, **state}, tokens[:, :1], tokens[:, :1], **options)
        outputs.append(logits)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


def test_a_layer_gives_the_same_with_the_lazy_bias_of_its_own():
    """What the slow tests say of whole models, on one layer and its gradients."""
    x = ROW

    def layer(attention_fn):
        return t5_architecture.EncoderLayer(
            attention=models.attention(attention_fn=attention_fn),
            mlp=models.mlp(),
            dropout_factory=models.dropout,
            layer_norm_factory=models.layer_norm_factory(),
            relative_position_bias_factory=models.relative_bias,
        )

    params = layer(BLOCKWISE).init(jax.random.key(0), x)["params"]

    def gradients(attention_fn):
        module = layer(attention_fn)
        return jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, x, enable_dropout=False) ** 2)))(params)

    plain, lazy = gradients(dot_product_attention), gradients(BLOCKWISE)
    assert np.any(lazy["relpos_bias"]["rel_embedding"] != 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), lazy, plain)


def test_a_bias_of_other_heads_is_refused():
    layer = models.attention(attention_fn=Attend())
    with pytest.raises(ValueError, match="bias has 3 heads; expected 1 or 4"):
        layer.apply({"params": params_of(layer)}, ROW, ROW, None, TableBias(jnp.ones((3, 8))))
