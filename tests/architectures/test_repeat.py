"""Scanned, rematerialised and listed layers are the same layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures import repeat
from flaxformer.architectures.repeat import LayerRemat
from tests.contracts import models

TOKENS = np.random.default_rng(0).integers(1, models.VOCABULARY, (2, 5))


def listed(**options):
    return models.encoder_decoder(per_layer_bias=True, **options)


def loss_of(model):
    def loss(params):
        logits = model.apply({"params": params}, TOKENS, TOKENS, TOKENS, enable_dropout=False)
        return jnp.mean(jax.nn.log_softmax(logits)[..., 1])

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_equals_listed_forward_backward_and_parameters(axis):
    scanned = models.decoder_only(scan=True, scan_axis=axis)
    plain = models.decoder_only(per_layer_bias=True)
    params = plain.init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False)["params"]
    stacked = repeat.stack_layer_params(params, axis)
    expected = jax.eval_shape(lambda: scanned.init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected["params"])
    chex.assert_trees_all_equal(repeat.unstack_layer_params(stacked, axis), params)

    def loss(model):
        return jax.jit(
            jax.value_and_grad(lambda p: model.apply({"params": p}, TOKENS, TOKENS, enable_dropout=False).std())
        )

    value, gradient = loss(plain)(params)
    value_scanned, gradient_scanned = loss(scanned)(stacked)
    np.testing.assert_allclose(value_scanned, value, rtol=1e-5)
    gradient_scanned = repeat.unstack_layer_params(gradient_scanned, axis)
    chex.assert_trees_all_close(gradient_scanned, gradient, atol=2e-6)


@pytest.mark.parametrize("remat", ["full", LayerRemat.MINIMAL])
def test_remat_changes_neither_numbers_nor_parameters(remat):
    plain = models.encoder_decoder(layers=1)
    params = plain.init(jax.random.key(0), TOKENS, TOKENS, TOKENS, enable_dropout=False)["params"]
    value, gradient = loss_of(plain)(params)
    again, gradient_again = loss_of(models.encoder_decoder(layers=1, remat=remat))(params)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    chex.assert_trees_all_close(gradient_again, gradient, atol=1e-6)


def test_full_remat_keeps_less_for_the_backward_pass():
    def temporary_bytes(remat):
        model = models.encoder_decoder(layers=4, remat=remat)
        tokens = np.ones((4, 32), np.int32)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))

        def loss(params):
            return model.apply({"params": params}, tokens, tokens, tokens, enable_dropout=False).sum()

        return len(jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params["params"])))

    assert temporary_bytes("full") < temporary_bytes("minimal") < temporary_bytes("none")


def test_legacy_means_full_when_scanning_and_none_otherwise():
    assert repeat.resolve_remat("legacy", True) is LayerRemat.FULL
    assert repeat.resolve_remat(LayerRemat.LEGACY, False) is LayerRemat.NONE
    with pytest.raises(ValueError, match="layer_remat is 'some'; expected one of"):
        repeat.resolve_remat("some", False)


def test_maybe_remat_makes_the_same_layer():
    def factory():
        return models.mlp()

    assert repeat.maybe_remat(factory, "none", False, ()) is factory
    x = jnp.ones((1, 3, models.WIDTH))
    flags = (1, 2, 4)  # decode, prefill, enable_dropout
    layer = repeat.maybe_remat(factory, "full", False, flags)()
    variables = layer.init(jax.random.key(0), x, enable_dropout=False)
    expected = factory().apply(variables, x, enable_dropout=False)
    np.testing.assert_allclose(layer.apply(variables, x, enable_dropout=False), expected, atol=1e-6)


def test_layers_that_differ_cannot_be_stacked():
    layers = {"decoder": {"layers_0": {"a": jnp.ones(2)}, "layers_1": {"a": jnp.ones(3)}}}
    with pytest.raises(ValueError, match="layers_1 has other parameters than layers_0"):
        repeat.stack_layer_params(layers)
    with pytest.raises(ValueError, match="expected name='encoder' or name='decoder'"):
        repeat.stack_layer_params(layers["decoder"])
    with pytest.raises(ValueError, match="shared_relative_position_bias_factory with scan_layers=True"):
        model = models.decoder_only(scan=True, per_layer_bias=False)
        jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, TOKENS))
