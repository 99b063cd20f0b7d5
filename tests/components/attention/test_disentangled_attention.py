import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.disentangled_attention import DisentangledAttention
from flaxformer.components.attention.masks import Causal, Padding
from flaxformer.components.positions.disentangled import DistanceTable, disentangled_scores
from flaxformer.components.positions.rotary import Rotary
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

X = jax.random.normal(jax.random.key(0), (ROWS, TOTAL, models.WIDTH))


def disentangled(**options):
    options = {"num_heads": 4, "head_dim": 4, "use_bias": True, "max_distance": 16} | options
    return DisentangledAttention(distances=DistanceTable(4, models.WIDTH), **options)


def randomised(variables):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables["params"])


def test_weights_are_those_of_the_published_implementation():
    """A layer of a random DeBERTa v2 with 6 buckets, recorded with transformers 5.23."""
    recorded = np.load(pathlib.Path(__file__).parent / "data" / "deberta_v2.npz")
    layer = DisentangledAttention(
        num_heads=4, use_bias=True, max_distance=32, distances=DistanceTable(6, 32, norm=nn.LayerNorm(1e-7))
    )
    inputs, valid = jnp.asarray(recorded["inputs"]), recorded["valid"]
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), inputs, inputs))
    for name in ("query", "key"):
        params[name] = {"kernel": recorded[f"{name}_kernel"], "bias": recorded[f"{name}_bias"]}
    norm = {"scale": recorded["norm_scale"], "bias": recorded["norm_bias"]}
    params["distances"] = {"rel_embeddings": recorded["table"], "norm": norm}
    mask = Padding(valid, valid)
    _, captured = jax.jit(lambda x: layer.apply({"params": params}, x, x, mask, mutable=["attention"]))(inputs)
    weights = np.asarray(captured["attention"]["weights"][0]).swapaxes(1, 2)
    np.testing.assert_allclose(weights[valid], recorded["weights"].swapaxes(1, 2)[valid], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("to_position", [True, False])
def test_terms_have_projections_of_their_own_and_can_be_left_out(to_position):
    terms = {"content_to_position": to_position, "position_to_content": not to_position}
    layer = disentangled(share_projections=False, use_bias=False, **terms)
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), X, X))
    own = "position_key" if to_position else "position_query"
    assert set(params) == {"query", "key", "value", "out", "distances", own}
    _, captured = jax.jit(lambda x: layer.apply({"params": params}, x, x, mutable=["attention"]))(X)
    table = params["distances"]["rel_embeddings"]
    query, key, distances = (
        np.asarray(x @ params[name]["kernel"]).reshape(*x.shape[:-1], 4, 4)
        for x, name in ((X, "query"), (X, "key"), (table, own))
    )
    position_query, position_key = (None, distances) if to_position else (distances, None)
    at = jnp.arange(TOTAL)[None]
    scores = disentangled_scores(query, key, position_query, position_key, at, at, 16)
    scores += jnp.einsum("btnh,bsnh->bnts", query, key)
    expected = jax.nn.softmax(scores / (4 * 2) ** 0.5)
    np.testing.assert_allclose(captured["attention"]["weights"][0], expected, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_cached_equals_uncached(share):
    layer = disentangled(share_projections=share)
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), X, X))
    expected = jax.jit(lambda x: layer.apply({"params": params}, x, x, Causal()))(X)

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    for b, output in enumerate(run_cached(call, np.asarray(X), "left", (2, 1))):
        np.testing.assert_allclose(output, expected[b, : len(output)], atol=2e-5, rtol=2e-5)


def test_every_parameter_has_a_gradient():
    layer = disentangled()
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), X, X))
    gradients = jax.jit(jax.grad(lambda params: (layer.apply({"params": params}, X, X, Causal()) ** 2).sum()))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-5, path


@pytest.mark.parametrize(
    "options", [{"positions": Rotary()}, {"num_kv_heads": 2}, {"rescale_logits": True}, {"use_rotary_embedding": True}]
)
def test_options_of_other_layers_are_refused(options):
    with pytest.raises(ValueError, match="expected a table of distances, and none of those options"):
        jax.eval_shape(lambda: disentangled(**options).init(jax.random.key(0), X, X))


def test_a_table_is_needed():
    with pytest.raises(ValueError, match="got distances=None"):
        layer = DisentangledAttention(num_heads=4, use_bias=True)
        jax.eval_shape(lambda: layer.init(jax.random.key(0), X, X))
