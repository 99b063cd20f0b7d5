"""Every collection that users of google/flaxformer read has its names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from flaxformer.components import convolution, embedding
from tests.contracts import models

X = jnp.ones((2, 3, models.WIDTH))
TOKENS = jnp.ones((2, 3), jnp.int32)
IDS = {"decode": True}
COLLECTIONS = ["cache", "cache_axes", "intermediates", "grads", "grads_axes"]


def names(module, *args, **keywords):
    """Collection and path of every variable that a call makes, beside the parameters."""

    def run():
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = module.init(keys, *args)
        params = {name: tree for name, tree in variables.items() if name in ("params", "params_axes")}
        return module.apply(params, *args, **keywords, mutable=COLLECTIONS)[1]

    flat = traverse_util.flatten_dict(jax.eval_shape(run), sep="/")
    return {name for name in flat if name.partition("/")[0] not in ("params", "params_axes")}


CONV = convolution.Depthwise1dConv(axis_names=["embed"], radius=2)


@pytest.mark.parametrize(
    ("module", "args", "keywords", "expected"),
    [
        (models.attention(), (X, X), IDS, {"cache/cached_key", "cache/cached_value", "cache/cache_index"}),
        (
            models.attention("multi_query"),
            (X, X),
            IDS,
            {f"{collection}/{leaf}" for leaf in ("cached_key", "cached_value", "cache_index")
             for collection in ("cache", "cache_axes")} ,
        ),
        (embedding.FixedEmbed(4), (TOKENS,), IDS, {"cache/position_embedder_index"}),
        (embedding.PositionEmbed(5, 4), (TOKENS,), IDS, {"cache/position_embedder_index"}),
        (models.relative_bias(), (3, 3, False), IDS, {"cache/cached_bias"}),
        (CONV, (X,), IDS, {"cache/cached_x_0", "cache/cached_x_1"}),
    ],
)  # fmt: skip
def test_decoding_makes_the_caches_by_name(module, args, keywords, expected):
    found = names(module, *args, **keywords)
    assert {
        name.replace("_axes", "") if name.startswith("cache/") else name.removesuffix("_axes") for name in found
    } == expected


def test_embeddings_are_sown_and_their_gradient_has_a_place():
    module = models.encoder(sow_intermediates=True, capture_gradients=True)
    found = names(module, TOKENS, enable_dropout=False)
    assert found == {
        "intermediates/input_tokens_ids",
        "intermediates/final_encoder_outputs",
        "intermediates/embedder/output",
        "grads/embedder/output_grad",
        "grads_axes/embedder/output_grad_axes",
    }


def test_logits_are_sown():
    module = models.decoder_only(sow_intermediates=True)
    found = names(module, TOKENS, TOKENS, enable_dropout=False)
    assert found == {f"intermediates/decoder/{name}" for name in ("pre_logits_layer", "logits", "embedder/output")}


@pytest.mark.parametrize("make", [models.encoder_decoder, models.decoder_only])
def test_every_parameter_has_its_axis_names_beside_it(make):
    args = (TOKENS,) * (3 if make is models.encoder_decoder else 2)
    variables = jax.eval_shape(lambda: make().init(jax.random.key(0), *args, enable_dropout=False))
    axes = traverse_util.flatten_dict(nn.unbox(variables["params_axes"]), sep="/")
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    assert set(axes) == {f"{name}_axes" for name in params}
