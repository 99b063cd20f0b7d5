"""A ring holds the window and no more, and nothing but the window is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.caches import RingCache
from flaxformer.components.attention.masks import Causal
from flaxformer.components.positions.rotary import Rotary
from flaxformer.decoding import Greedy, PromptLookup, generate
from flaxformer.step import Step
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

X = np.random.default_rng(0).normal(size=(ROWS, TOTAL, models.WIDTH)).astype(np.float32)


def layer_with(window, **options):
    layer = models.attention(cache=RingCache(window, **options), positions=Rotary())
    return layer, layer.init(jax.random.key(0), X, X)["params"]


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(("side", "chunks"), [("left", (2, 1)), ("right", (1, 2))])
def test_prefill_chunks_and_steps_equal_one_pass(window, side, chunks):
    """Rows are ragged, prompts longer than the window, and chunks run over its end."""
    layer, params = layer_with(window)
    expected = np.asarray(layer.apply({"params": params}, X, X, Causal()))

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    for b, output in enumerate(run_cached(call, X, side, chunks)):
        np.testing.assert_allclose(output, expected[b, : len(output)], atol=2e-5, rtol=2e-5)


def test_memory_is_that_of_the_window_whatever_the_length():
    layer, params = layer_with(3, dtype="bfloat16")
    step = Step.start(jnp.ones((1, TOTAL), bool), 1000)
    _, changed = layer.apply({"params": params}, X, X, Causal(), step=step, mutable=["cache"])
    for leaf in jax.tree.leaves(changed["cache"]):
        assert leaf.shape == (ROWS, models.HEADS, models.HEAD_DIM, 3) and leaf.dtype == jnp.bfloat16


def test_a_position_lies_in_its_own_slot():
    layer, params = layer_with(4)
    calls = []
    for length in (5, 6):  # the sixth token, at position 5, takes slot 1
        step = Step.start(jnp.ones((1, length), bool), 8)
        calls.append(layer.apply({"params": params}, X[:, :length], X[:, :length], step=step, mutable=["cache"])[1])
    before, after = (np.asarray(call["cache"]["cached_value"]) for call in calls)
    np.testing.assert_allclose(after[..., [0, 2, 3]], before[..., [0, 2, 3]], atol=1e-6)
    assert not np.allclose(after[..., 1], before[..., 1])


def test_training_sees_the_window_too():
    layer, params = layer_with(2)
    moved = X.copy()
    moved[:, 0] += 1.0
    outputs = [layer.apply({"params": params}, x, x, Causal()) for x in (X, moved)]
    np.testing.assert_allclose(outputs[0][:, 2:], outputs[1][:, 2:], atol=1e-6)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="window is 0; expected at least 1"):
        RingCache(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.attention(cache=RingCache(3), positions=Rotary()),
        lambda: models.attention(k_conv=models.convolve()),
    ],
    ids=["ring", "convolution"],
)
def test_tokens_cannot_be_taken_back_from_what_has_no_slots(make):
    model = models.decoder_only(bias=False, make_attention=make)
    tokens = np.array([[3, 4, 5]])
    params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]
    options = {"strategy": Greedy(), "draft": PromptLookup(), "max_new_tokens": 4, "eos_id": 1}
    with pytest.raises(ValueError, match="the model keeps what cannot be taken back: a ring"):
        generate(model, {"params": params}, tokens, **options)
