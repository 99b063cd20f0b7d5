"""The hooks of the attention layers: norms, reach, positions as module, lazy biases, attention functions as objects."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import memory_efficient_attention
from flaxformer.components.attention.attention_functions import dot_product_attention
from flaxformer.components.attention.kernels.biases import AlibiBias, TableBias
from flaxformer.components.attention.kernels.relative_keys import RelativeKeys
from flaxformer.components.attention.masks import Causal, Window
from flaxformer.components.attention.variants import Attend
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.components.relative_position_biases import RelativePositionBiases
from flaxformer.step import Step
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

ROW = np.random.default_rng(0).normal(size=(ROWS, TOTAL, models.WIDTH)).astype(np.float32)
SLOPES = jnp.array([0.5, 0.25, 0.125, 0.0625])


@dataclasses.dataclass(frozen=True)
class Slopes(PositionScheme):
    lazy: bool = True

    def bias(self, q_positions, k_positions):
        bias = AlibiBias(SLOPES, q_positions, k_positions)
        return bias if self.lazy else bias.dense(q_positions.shape[1], k_positions.shape[1])


class Relative(nn.Module):
    """A learned vector per clipped distance, scored by the query: no `rotate`, no `bias`."""

    @nn.compact
    def scores_bias(self, query, key, q_positions, k_positions):
        table = self.param("table", nn.initializers.normal(1.0), (5, query.shape[-1]))
        distance = jnp.clip(q_positions[:, :, None] - k_positions[:, None, :], 0, 4)
        by_pair = jnp.broadcast_to(table[distance], (query.shape[0], *distance.shape[1:], query.shape[-1]))
        return jnp.einsum("btnh,btsh->bnts", query, by_pair)


class Doubled(nn.Module):
    """An attention function with a parameter."""

    @nn.compact
    def __call__(self, query, key, value, bias=None, *, mask=None, **options):
        factor = self.param("factor", nn.initializers.constant(2.0), ())
        return factor * dot_product_attention(query, key, value, bias, mask=mask, **options)

    def weights(self, query, key, bias=None, *, mask=None, **options):
        return jnp.full((1,), 3.0)


LAYERS = {
    "norms": models.attention(q_norm=nn.RMSNorm(), k_norm=nn.RMSNorm(), positions=Rotary(), rescale_logits=True),
    "multi_query norms": models.attention("multi_query", q_norm=nn.RMSNorm(), k_norm=nn.RMSNorm()),
    "reach": models.attention(reach=Window(left=2)),
    "lazy bias": models.attention(positions=Slopes()),
    "scored bias": models.attention(positions=Relative()),
    "module bias": models.attention("grouped", positions=RelativePositionBiases(8, 16, models.HEADS, "float32")),
    "module function": models.attention(attention_fn=Doubled()),
}


def params_of(layer, rows=ROW):
    return layer.init(jax.random.key(0), rows, rows)["params"]


@pytest.mark.parametrize("name", LAYERS)
def test_cached_equals_uncached(name):
    layer = LAYERS[name]
    params = params_of(layer)
    expected = layer.apply({"params": params}, ROW, ROW, Causal())

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    for side, chunks in (("left", (2, 1)), ("right", (1, 1, 1))):
        for b, output in enumerate(run_cached(call, ROW, side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=2e-5, rtol=2e-5)


def test_reach_equals_the_callers_mask():
    layer, narrow = models.attention(), LAYERS["reach"]
    params = params_of(layer)
    expected = layer.apply({"params": params}, ROW, ROW, Causal() & Window(left=2))
    np.testing.assert_array_equal(narrow.apply({"params": params}, ROW, ROW, Causal()), expected)
    alone = narrow.clone(reach=Causal() & Window(left=2))
    np.testing.assert_array_equal(alone.apply({"params": params}, ROW, ROW), expected)


def test_reach_and_position_bias_follow_the_positions_of_the_step():
    step = Step(positions=jnp.array([[0, 5, 6, 7, 20, 21, 22]]))
    seen = Window(left=2, right=0, query_positions=step.positions, key_positions=step.positions)
    layer = models.attention()
    params = params_of(layer)
    expected = layer.apply({"params": params}, ROW, ROW, seen.dense(TOTAL, TOTAL))
    output = layer.clone(reach=Window(left=2, right=0)).apply({"params": params}, ROW, ROW, step=step)
    np.testing.assert_array_equal(output, expected)
    bias = AlibiBias(SLOPES, step.positions, step.positions).dense(TOTAL, TOTAL)
    expected = layer.apply({"params": params}, ROW, ROW, None, bias)
    output = layer.clone(positions=Slopes()).apply({"params": params}, ROW, ROW, step=step)
    np.testing.assert_allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("own", [Slopes(), Slopes(lazy=False)])
def test_the_position_bias_is_added_to_the_callers(own):
    layer = models.attention()
    params, table = params_of(layer), jax.random.normal(jax.random.key(1), (models.HEADS, 8))
    given, alibi = TableBias(table), AlibiBias(SLOPES)
    dense = given.dense(TOTAL, TOTAL)
    expected = layer.apply({"params": params}, ROW, ROW, Causal(), dense + alibi.dense(TOTAL, TOTAL))
    for bias in (given, dense):
        output = layer.clone(positions=own).apply({"params": params}, ROW, ROW, Causal(), bias)
        np.testing.assert_allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["multi_head", "multi_query"])
def test_memory_efficient_functions_take_lazy_biases(kind):
    functions = {
        "multi_head": memory_efficient_attention.dot_product_attention_multihead,
        "multi_query": memory_efficient_attention.dot_product_attention_multiquery,
    }
    layer, bias = models.attention(kind), TableBias(jax.random.normal(jax.random.key(1), (models.HEADS, 8)))
    params = params_of(layer)
    expected, captured = layer.apply({"params": params}, ROW, ROW, Causal(), bias, mutable=["attention"])
    output, same = layer.clone(attention_fn=functions[kind]).apply(
        {"params": params}, ROW, ROW, Causal(), bias, mutable=["attention"]
    )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_array_equal(same["attention"]["weights"][0], captured["attention"]["weights"][0])


@pytest.mark.parametrize("rescale", [False, True])
def test_a_lazy_bias_that_reads_the_queries_equals_itself_as_an_array(rescale):
    plain = models.attention(rescale_logits=rescale)
    params, keys = params_of(plain), RelativeKeys(jax.random.normal(jax.random.key(1), (9, models.HEAD_DIM)))
    expected = plain.clone(attention_fn=Attend()).apply({"params": params}, ROW, ROW, Causal(), keys)
    np.testing.assert_allclose(plain.apply({"params": params}, ROW, ROW, Causal(), keys), expected, atol=1e-5)


def test_norms_act_on_the_last_axis_before_rotation():
    layer = LAYERS["norms"]
    params = params_of(layer)
    assert {name: params[name]["scale"].shape for name in ("q_norm", "k_norm")} == dict.fromkeys(
        ("q_norm", "k_norm"), (models.HEAD_DIM,)
    )
    scaled = jax.tree.map(lambda x: x, params) | {"query": {"kernel": params["query"]["kernel"] * 100}}
    np.testing.assert_allclose(
        layer.apply({"params": scaled}, ROW, ROW, Causal()),
        layer.apply({"params": params}, ROW, ROW, Causal()),
        atol=1e-4,
    )


def test_an_attention_function_that_is_a_module_owns_parameters_and_tells_its_weights():
    layer, doubled = models.attention(), LAYERS["module function"]
    params = params_of(doubled)
    assert params["attention_fn"]["factor"].shape == ()
    x, captured = doubled.apply({"params": params}, ROW, ROW, Causal(), mutable=["attention"])
    assert captured["attention"]["weights"][0].shape == (1,)
    halved = params | {"attention_fn": {"factor": jnp.ones(())}}
    expected = layer.apply({"params": {k: v for k, v in params.items() if k != "attention_fn"}}, ROW, ROW, Causal())
    np.testing.assert_array_equal(doubled.apply({"params": halved}, ROW, ROW, Causal()), expected)
    assert not np.allclose(x, expected)


@pytest.mark.parametrize("function", [dot_product_attention, Attend()])
def test_beams_over_one_encoded_batch_stand_at_their_own_positions(function):
    layer = models.attention(reach=Window(left=3, right=1), positions=Slopes(), attention_fn=function)
    params, beams = params_of(layer), 2
    encoded, targets = ROW[:, :5], np.random.default_rng(1).normal(size=(ROWS * beams, 4, models.WIDTH)).astype("f4")
    expected = layer.apply({"params": params}, targets, np.repeat(encoded, beams, 0))
    step = Step.start(jnp.ones((1, 2), bool), 4)
    for one in (step, step.replace(positions=jnp.tile(step.positions, (ROWS * beams, 1)))):
        first, kept = layer.apply(
            {"params": params}, targets[:, :2], encoded, step=one.to_memory(), mutable=["cross_cache"]
        )
        later = layer.apply({"params": params, **kept}, targets[:, 2:], encoded, step=one.advance(2).to_memory())
        np.testing.assert_allclose(np.concatenate([first, later], 1), expected, atol=1e-5)
