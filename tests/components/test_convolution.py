import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.convolution import (
    Depthwise1dConv,
    constant_init,
    roll_with_zeros,
    roll_with_zeros_along_axis,
)
from flaxformer.step import Step

BATCH, PROMPT, CHUNK, STEPS = 3, 4, 3, 3


def make(feature_dims=1, radius=2, **kwargs):
    """A convolution with random weights, and the shape of its features."""
    features = (2, 3)[:feature_dims]
    conv = Depthwise1dConv(
        axis_names=("heads", "kv")[:feature_dims], num_feature_dims=feature_dims, radius=radius, **kwargs
    )
    params = conv.init(jax.random.key(0), jnp.ones((1, 2, *features)))["params"]
    keys = jax.random.split(jax.random.key(1), len(params))
    params = {name: jax.random.normal(key, features) for name, key in zip(params, keys, strict=True)}
    return conv, params, features


def expected(params, row):
    """The causal convolution of one sequence `[T, ...]`, written as its sum."""
    weights = [np.asarray(params[f"conv_{s}"]) for s in range(len(params))]
    zero = np.zeros_like(row[:1]).sum(0)
    return [sum(w * (row[t - s] if t >= s else zero) for s, w in enumerate(weights)) for t in range(len(row))]


def runs(width, smallest):
    """Where the real inputs of one row of a call start, and how many there are."""
    return st.integers(smallest, width).flatmap(lambda n: st.tuples(st.integers(0, width - n), st.just(n)))


@pytest.mark.parametrize("feature_dims", [1, 2])
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_full_forward_equals_prefill_chunks_and_steps_wherever_the_padding_is(feature_dims, data):
    conv, params, features = make(feature_dims)
    prompt = data.draw(st.lists(runs(PROMPT, 0), min_size=BATCH, max_size=BATCH), label="prompt")
    chunk = data.draw(st.lists(runs(CHUNK, 0), min_size=BATCH, max_size=BATCH), label="chunk")
    calls = [(PROMPT, prompt), (CHUNK, chunk), *[(1, None)] * STEPS]
    inputs = np.random.default_rng(0).normal(size=(len(calls), BATCH, PROMPT, *features)).astype(np.float32)

    step, cache = None, {}
    sequences, outputs = [[] for _ in range(BATCH)], [[] for _ in range(BATCH)]
    for (length, spans), x in zip(calls, inputs, strict=True):
        spans = spans or [(0, length)] * BATCH
        valid = np.array([[first <= t < first + count for t in range(length)] for first, count in spans])
        given_valid = None if valid.all() and step else jnp.asarray(valid)
        step = step.advance(length, given_valid) if step else Step.start(given_valid, cache_length=20)
        y, cache = conv.apply({"params": params, **cache}, jnp.asarray(x[:, :length]), step=step, mutable=["cache"])
        for row in range(BATCH):
            sequences[row].extend(x[row, :length][valid[row]])
            outputs[row].extend(np.asarray(y)[row][valid[row]])
    for row in range(BATCH):
        np.testing.assert_allclose(outputs[row], expected(params, np.stack(sequences[row])), atol=1e-5)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_does_not_change_valid_outputs(padding):
    conv, params, _ = make(autoregressive=False)
    x = jax.random.normal(jax.random.key(2), (2, 5, 2))
    plain = conv.apply({"params": params}, x[:, :3])
    at = slice(2, 5) if padding == "left" else slice(0, 3)
    padded = jnp.full_like(x, jnp.nan).at[:, at].set(x[:, :3])
    valid = jnp.zeros((1, 5), bool).at[:, at].set(True)
    np.testing.assert_allclose(conv.apply({"params": params}, padded, step=Step(valid=valid))[:, at], plain, atol=1e-6)


def test_step_is_traced_data():
    conv, params, _ = make()
    x = jax.random.normal(jax.random.key(2), (2, 6, 2))
    step = Step.start(jnp.ones((1, 3), bool), cache_length=6)
    outputs, cache = conv.apply({"params": params}, x[:, :3], step=step, mutable=["cache"])
    apply = jax.jit(lambda cache, x, step: conv.apply({"params": params, **cache}, x, step=step, mutable=["cache"]))
    for t in range(3, 6):
        step = step.advance()
        y, cache = apply(cache, x[:, t : t + 1], step)
        outputs = jnp.concatenate([outputs, y], axis=1)
    np.testing.assert_allclose(outputs, conv.apply({"params": params}, x), atol=1e-6)
    assert apply._cache_size() <= 2  # the first advance and those that follow


def test_cache_holds_the_last_real_inputs_latest_first():
    conv, params, _ = make()
    x = jnp.arange(12.0).reshape(2, 3, 2) + 1
    valid = jnp.array([[True, True, False], [False, False, True]])
    _, variables = conv.apply({"params": params}, x, step=Step.start(valid, cache_length=8), mutable=["cache"])
    cache = variables["cache"]
    np.testing.assert_array_equal(cache["cached_x_0"], [[x[0, 1]], [x[1, 2]]])
    np.testing.assert_array_equal(cache["cached_x_1"], [[x[0, 0]], [jnp.zeros(2)]])


def test_radius_zero_needs_no_cache():
    conv, params, _ = make(radius=0)
    x = jax.random.normal(jax.random.key(2), (2, 2, 2))
    step = Step.start(jnp.ones((1, 2), bool), cache_length=4)
    y, _ = conv.apply({"params": params}, x, step=step, mutable=["cache"])
    z, _ = conv.apply({"params": params}, x, step=step.advance(2), mutable=["cache"])
    np.testing.assert_allclose(y, params["conv_0"] * x, atol=1e-6)
    np.testing.assert_allclose(z, y)


def test_cached_convolution_must_be_causal():
    conv, params, _ = make(autoregressive=False)
    x = jnp.ones((1, 1, 2))
    for keywords in ({"decode": True}, {"step": Step.start(jnp.ones((1, 1), bool), cache_length=2)}):
        with pytest.raises(ValueError, match="cache was asked for with autoregressive=False"):
            conv.apply({"params": params}, x, mutable=["cache"], **keywords)


def test_prefill_without_lengths_is_refused():
    conv, params, _ = make()
    with pytest.raises(ValueError, match="without prefill_lengths; pass the number of real tokens"):
        conv.apply({"params": params}, jnp.ones((1, 3, 2)), prefill=True, mutable=["cache"])


def test_decode_of_several_tokens_is_refused():
    conv, params, _ = make()
    x = jnp.ones((1, 3, 2))
    _, cache = conv.apply({"params": params}, x, decode=True, mutable=["cache"])
    with pytest.raises(ValueError, match="inputs of length 3; expected one token"):
        conv.apply({"params": params, **cache}, x, decode=True, mutable=["cache"])


def test_step_that_continues_needs_a_cache():
    conv, params, _ = make()
    step = Step.start(jnp.ones((1, 3), bool), cache_length=4).advance()
    with pytest.raises(ValueError, match="the cache holds no inputs; expected that of earlier calls"):
        conv.apply({"params": params}, jnp.ones((1, 1, 2)), step=step, mutable=["cache"])


def test_branches_of_a_row_are_refused():
    conv, params, _ = make()
    step = Step.start(jnp.ones((1, 1), bool), cache_length=2).advance().branch(2, 2, 6)
    with pytest.raises(ValueError, match="the step is of branches that share a row; expected a row of its own"):
        conv.apply({"params": params}, jnp.ones((2, 2, 2)), step=step, mutable=["cache"])


@pytest.mark.parametrize("step", [Step(prefill=True, lengths=jnp.array([1])), Step(valid=jnp.ones((1, 1), bool))])
def test_rows_of_different_lengths_need_the_length_on_axis_1(step):
    conv, params, _ = make(length_dim=0)
    with pytest.raises(ValueError, match="length_dim is 0; expected 1"):
        conv.apply({"params": params}, jnp.ones((1, 1, 2)), step=step, mutable=["cache"])


def test_prefill_and_decode_together_are_refused():
    conv, params, _ = make()
    with pytest.raises(ValueError, match="decode=True and prefill=True"):
        conv.apply({"params": params}, jnp.ones((1, 1, 2)), decode=True, prefill=True)


def test_constant_init_fills():
    np.testing.assert_array_equal(constant_init(0.25)(None, (2,)), [0.25, 0.25])
    assert constant_init(1.0)(None, (2,), jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("shift", [0, 1, -1, 3, -3])
def test_roll_with_zeros_moves_one_way_and_drops_what_leaves(shift):
    x = np.arange(1, 4)
    wanted = [x[i - shift] if 0 <= i - shift < 3 else 0 for i in range(3)]
    np.testing.assert_array_equal(roll_with_zeros_along_axis(jnp.asarray(x), shift, 0), wanted)


def test_roll_with_zeros_moves_each_axis():
    np.testing.assert_array_equal(roll_with_zeros(jnp.array([[1, 2], [3, 4]]), [1, -1]), [[0, 0], [2, 0]])


def test_roll_with_zeros_needs_a_distance_for_each_axis():
    with pytest.raises(ValueError, match=r"shift is \(1,\) for an array of rank 2"):
        roll_with_zeros(jnp.ones((2, 2)), [1])
