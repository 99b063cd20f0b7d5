"""Decoder layers of other arrangements equal their formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.arrangements import ParallelDecoderLayer, SandwichDecoderLayer
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock

X = jax.random.normal(jax.random.key(1), (2, 5, 8))


def run(kind, **options):
    layer = kind(
        self_attention=MultiHeadDotProductAttention(2, use_bias=True),
        encoder_decoder_attention=None,
        mlp=MlpBlock(True, 16),
        dropout_factory=lambda: nn.Dropout(0.0),
        layer_norm_factory=nn.LayerNorm,
        **options,
    )
    y, variables = jax.jit(lambda: layer.init_with_output(jax.random.key(0), X, None, enable_dropout=False))()
    params = variables["params"]

    def norm(name, x):
        return nn.LayerNorm().apply({"params": params[name]}, x)

    def attend(x):
        return layer.self_attention.apply({"params": params["self_attention"]}, x, x, enable_dropout=False)

    def feed(x):
        return layer.mlp.apply({"params": params["mlp"]}, x, enable_dropout=False)

    return y, norm, attend, feed


@pytest.mark.parametrize("own", [False, True])
def test_parallel_branches_read_the_same_input(own):
    y, norm, attend, feed = run(ParallelDecoderLayer, own_mlp_norm=own)
    read = norm("pre_mlp_layer_norm" if own else "pre_self_attention_layer_norm", X)
    np.testing.assert_allclose(y, X + attend(norm("pre_self_attention_layer_norm", X)) + feed(read), atol=1e-5)


def test_sandwiched_branches_are_normalised_before_and_after():
    y, norm, attend, feed = run(SandwichDecoderLayer)
    x = X + norm("post_self_attention_layer_norm", attend(norm("pre_self_attention_layer_norm", X)))
    x = x + norm("post_mlp_layer_norm", feed(norm("pre_mlp_layer_norm", x)))
    np.testing.assert_allclose(y, x, atol=1e-5)
    assert jnp.isfinite(y).all()
