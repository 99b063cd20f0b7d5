"""Layers take any part, place their norm as told, and refuse what cannot work."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.layers import DecoderLayer, EncoderLayer, PostNorm
from flaxformer.components.attention.masks import Causal, Mask
from flaxformer.components.rich_attention_position_scores import RichAttentionApi
from tests.contracts import models

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, models.WIDTH)), jnp.float32)


class PlainMlp(nn.Module):
    """Knows nothing of this library."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.relu(nn.Dense(8)(x)))


class OldAttention(nn.Module):
    """Written against google/flaxformer's calling convention: masks are arrays, keywords are spelled out."""

    @nn.compact
    def __call__(
        self, inputs_q, inputs_kv, mask=None, bias=None, *, decode=False, enable_dropout=True, prefill=False,
        prefill_lengths=None,
    ):  # fmt: skip
        assert not isinstance(mask, Mask)
        assert (decode, prefill, prefill_lengths) == (False, False, None)
        return models.attention(name="inner")(inputs_q, inputs_kv, mask, bias)


def encoder_layer(**options):
    options = {
        "attention": models.attention(),
        "mlp": models.mlp(),
        "dropout_factory": models.dropout,
        "layer_norm_factory": models.layer_norm_factory(),
    } | options
    return EncoderLayer(**options)


def decoder_layer(**options):
    options = {
        "self_attention": models.attention(),
        "encoder_decoder_attention": None,
        "mlp": models.mlp(),
        "dropout_factory": models.dropout,
        "layer_norm_factory": models.layer_norm_factory(),
    } | options
    return DecoderLayer(**options)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, functools.partial(nn.LayerNorm, use_bias=False)])
def test_plain_linen_norms_and_mlps_fit(norm):
    for layer, args in (
        (encoder_layer(mlp=PlainMlp(), layer_norm_factory=norm), ()),
        (decoder_layer(mlp=PlainMlp(), layer_norm_factory=norm), (None, Causal())),
    ):
        variables = layer.init(jax.random.key(0), X, *args, enable_dropout=False)
        assert layer.apply(variables, X, *args, enable_dropout=False).shape == X.shape


def test_attention_in_the_old_convention_gets_arrays_and_keywords():
    old = decoder_layer(self_attention=OldAttention())
    with pytest.warns(DeprecationWarning, match="OldAttention is called with decode, prefill, prefill_lengths"):
        variables = old.init(jax.random.key(0), X, None, Causal(), enable_dropout=False)
    params = dict(variables["params"])
    params["self_attention"] = params["self_attention"]["inner"]
    expected = decoder_layer().apply({"params": params}, X, None, Causal(), enable_dropout=False)
    np.testing.assert_array_equal(old.apply(variables, X, None, Causal(), enable_dropout=False), expected)


def test_post_norm_normalises_the_sum():
    layer = encoder_layer(residual=PostNorm(), layer_norm_factory=nn.LayerNorm)
    variables = layer.init(jax.random.key(0), X, enable_dropout=False)
    y = layer.apply(variables, X, enable_dropout=False)
    np.testing.assert_allclose(y.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1.0, atol=1e-2)
    params = variables["params"]
    attended = models.attention().apply({"params": params["attention"]}, X, X)
    x = nn.LayerNorm().apply({"params": params["pre_attention_layer_norm"]}, X + attended)
    fed = models.mlp().apply({"params": params["mlp"]}, x, enable_dropout=False)
    expected = nn.LayerNorm().apply({"params": params["pre_mlp_layer_norm"]}, x + fed)
    np.testing.assert_allclose(y, expected, atol=1e-5)


class Scores(RichAttentionApi, nn.Module):
    """A bias computed from what the tokens are."""

    @nn.compact
    def __call__(self, q_inputs, k_inputs, bidirectional=True, is_cross_attention=False):
        scores = jnp.einsum("btd,bsd->bts", q_inputs, k_inputs)[:, None]
        return scores * (3.0 if is_cross_attention else 1.0) * (1.0 if bidirectional else -1.0)


def test_rich_attention_scores_reach_self_and_cross_attention():
    layer = decoder_layer(encoder_decoder_attention=models.attention(), relative_position_bias_factory=Scores)
    variables = layer.init(jax.random.key(0), X, X, enable_dropout=False)
    own, cross = layer.apply(variables, None, False, X, X, method="get_bias")
    np.testing.assert_allclose(cross, 3.0 * own, rtol=1e-6)
    assert layer.apply(variables, None, False, X, None, method="get_bias")[1] is None
    encoder = encoder_layer(relative_position_bias_factory=Scores)
    np.testing.assert_array_equal(encoder.bind(variables).get_bias(X), -own)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="got both relative_position_bias_factory and shared_relative_position_bias"):
        layer = encoder_layer(
            relative_position_bias_factory=models.relative_bias, shared_relative_position_bias=models.relative_bias()
        )
        layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="the position bias is a Dense; expected a RelativeAttentionAPI"):
        encoder_layer(relative_position_bias_factory=lambda: nn.Dense(3)).init(jax.random.key(0), X)
    with pytest.raises(AssertionError, match=r"EncoderLayer got inputs of shape \(5, 16\); expected rank 3"):
        encoder_layer().init(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="encoder_decoder_attention is None"):
        decoder_layer().init(jax.random.key(0), X, X)
    with pytest.raises(ValueError, match=r"got the arguments \['latents'\]"):
        decoder_layer().init(jax.random.key(0), X, None, latents=3)
    with pytest.raises(ValueError, match="neither prefill_lengths nor a decoder_mask"):
        decoder_layer().init(jax.random.key(0), X, None, prefill=True)
