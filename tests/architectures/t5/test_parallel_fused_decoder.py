"""The fused layer equals its parts side by side, and refuses parts it cannot fuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.t5.parallel_fused_decoder import ParallelFusedDecoderLayer
from flaxformer.components.attention.masks import Causal
from tests.contracts import models
from tests.contracts.parts import PARTS

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, models.WIDTH)), jnp.float32)


def layer(**overrides):
    return PARTS["ParallelFusedDecoderLayer"].module(**overrides)


def test_the_fused_products_are_the_separate_ones_side_by_side():
    module = layer()
    params = module.init(jax.random.key(0), X, enable_dropout=False)["params"]
    fused = params["q_wi_fused"]["kernel"]  # [D N H+2F/N]
    head, wide = models.HEAD_DIM, models.MLP // models.HEADS
    key, value = jnp.split(params["kv_fused"]["kernel"][:, 0], 2, axis=-1)
    out = params["o_wo_fused"]["kernel"]  # [N H+F/N D]
    normalised = models.layer_norm_factory()().apply({"params": params["layer_norm"]}, X)
    attention = models.attention("multi_query", split_head_kernel=True)
    attended = attention.apply(
        {
            "params": {
                "query": {"kernel": fused[..., :head]},
                "key": {"kernel": key},
                "value": {"kernel": value},
                "out": {"kernel": out[:, :head]},
            }
        },
        normalised,
        normalised,
        Causal(),
    )
    branches = [fused[..., head + i * wide : head + (i + 1) * wide].reshape(models.WIDTH, -1) for i in (0, 1)]
    hidden = jax.nn.gelu(normalised @ branches[0]) * (normalised @ branches[1])
    expected = X + attended + hidden @ out[:, head:].reshape(-1, models.WIDTH)
    actual = module.apply({"params": params}, X, None, Causal(), enable_dropout=False)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"self_attention": models.attention()}, "expected a MultiQueryDotProductAttention"),
        ({"self_attention": models.attention("multi_query")}, "self_attention.out_features is None"),
        (
            {"self_attention": models.attention("multi_query", head_dim=None, out_features=models.WIDTH)},
            "neither head_dim nor qkv_features",
        ),
        ({"mlp": models.mlp(intermediate_dim=10, out_dim=models.WIDTH)}, "does not divide by num_heads=4"),
        ({"use_aqt": True}, "Quantised computation is retired"),
        (
            {
                "relative_position_bias_factory": models.relative_bias,
                "shared_relative_position_bias": models.relative_bias(),
            },
            "expected at most one",
        ),
    ],
)
def test_parts_that_cannot_be_fused_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: layer(**overrides).init(jax.random.key(0), X))


def test_calls_it_cannot_serve_are_refused():
    module = layer()
    for args, keywords, message in (
        ((X, X), {}, "got encoder outputs; expected None"),
        ((X[0],), {}, "expected rank 3"),
        ((X,), {"latents": 1}, r"got the arguments \['latents'\]"),
        ((X,), {"prefill": True}, "neither prefill_lengths nor a decoder_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda args=args, keywords=keywords: module.init(jax.random.key(0), *args, **keywords))


def test_the_class_of_its_projections_can_be_replaced():
    names = []

    def make(**settings):
        names.append(settings["kernel_axis_names"])
        return models.dense.DenseGeneral(**settings)

    jax.eval_shape(lambda: layer(dense_general_cls_factory=lambda: make).init(jax.random.key(0), X))
    assert names == [["embed", "heads", "q_wi_fused"], ["embed", "multiquery_heads", "kv_fused"],
                     ["heads", "o_wo_fused", "embed"]]  # fmt: skip
    assert isinstance(layer(), ParallelFusedDecoderLayer)
