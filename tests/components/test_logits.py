"""Logits: by the token table or a kernel, scaled, with a bias, bounded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.logits import OutputLogits, TiedLogits, TransformedLogits, softcap

X = jnp.array([[1.0, -2.0, 3.0]])
TABLE = jnp.arange(12.0).reshape(4, 3)


def attend(x):
    return x @ TABLE.T


def test_tied_logits_scale_add_a_bias_and_are_bounded():
    logits, variables = TiedLogits(scale=0.5, use_bias=True, num_embeddings=4, cap=5.0).init_with_output(
        jax.random.key(0), X, attend=attend
    )
    np.testing.assert_allclose(logits, 5 * np.tanh(0.5 * np.asarray(attend(X)) / 5), rtol=1e-6)
    bias = {"params": {"bias": jnp.array([1.0, 2.0, 3.0, 4.0])}}
    plain = TiedLogits(use_bias=True, num_embeddings=4).apply(bias, X, attend=attend)
    np.testing.assert_allclose(plain, attend(X) + bias["params"]["bias"])
    assert variables["params_axes"]["bias_axes"].names == ("vocab",)
    with pytest.raises(ValueError, match="use_bias=True and num_embeddings=None; expected the vocabulary's size"):
        TiedLogits(use_bias=True).init(jax.random.key(0), X, attend=attend)


def test_output_logits_are_a_dense_layer_scaled_and_bounded():
    module = OutputLogits(4, True, scale=2.0, cap=3.0)
    logits, variables = module.init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(logits, softcap(2 * X @ variables["params"]["kernel"], 3.0), rtol=1e-5)


def test_transformed_logits_are_dense_activation_norm_and_table():
    module = TransformedLogits(3, 4, "relu", nn.LayerNorm)
    logits, variables = module.init_with_output(jax.random.key(0), X, attend=attend)
    params = variables["params"]
    hidden = nn.LayerNorm().apply({"params": params["layer_norm"]}, nn.relu(X @ params["dense"]["kernel"]))
    np.testing.assert_allclose(logits, attend(hidden), rtol=1e-5)
    assert params["logits"]["bias"].shape == (4,)
