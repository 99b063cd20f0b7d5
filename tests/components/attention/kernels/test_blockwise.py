import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases
from flaxformer.components.attention.kernels.blockwise import attend_blockwise
from flaxformer.components.attention.kernels.reference import attend_reference
from tests.components.attention.kernels import cases
from tests.components.attention.kernels.cases import B, H, K, N, S, T

small_blocks = functools.partial(attend_blockwise, query_block=4, key_block=3)
with_sum = functools.partial(small_blocks, return_residuals=True)


def exact(arrays, options):
    """Values and gradients in float64."""
    with jax.enable_x64(True):
        return cases.gradients(functools.partial(attend_reference, return_residuals=True), cases.widen(arrays), options)


@pytest.mark.parametrize("name", cases.CASES)
def test_values_and_gradients_are_those_of_float64(name):
    arrays, options = cases.request(name)
    actual, expected = cases.gradients(with_sum, arrays, options), exact(arrays, options)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1, np.abs(np.where(np.isinf(b), 0, b)).max()))


@pytest.mark.parametrize("name", ["blind rows and sinks", "T5 bias", "dropout"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_off_by_rounding_only(name, dtype):
    arrays, options = cases.request(name, dtype)
    actual, expected = cases.gradients(with_sum, arrays, options), exact(arrays, options)
    step = float(jnp.finfo(dtype).eps)  # inputs are exact, sums are float32: what is left is rounding the results
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=step * max(1, np.abs(np.where(np.isinf(b), 0, b)).max()))


@pytest.mark.parametrize("name", ["window", "sum of biases"])
def test_float64_stays_float64(name):
    arrays, options = cases.request(name)
    expected = exact(arrays, options)
    with jax.enable_x64(True):
        actual = cases.gradients(with_sum, cases.widen(arrays), options)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("blocks", [(None, None), (1, 7), (6, 2)])
def test_block_sizes_change_nothing(blocks):
    arrays, options = cases.request("dropout")
    rest = [arrays.pop(x) for x in ("query", "key", "value")]
    actual = attend_blockwise(*rest, **arrays, **options, query_block=blocks[0], key_block=blocks[1])
    np.testing.assert_allclose(actual, small_blocks(*rest, **arrays, **options), atol=1e-6)


def poisoned(x, positions, rows=slice(None)):
    x = np.array(x)
    x[rows, positions] = np.nan
    return x


@pytest.mark.parametrize(
    ("mask", "hidden", "rows"),
    [
        (masks.Window(right=-3), [6], slice(None)),
        (masks.KeyLengths(np.array([3])), [3, 4, 5, 6], slice(None)),
        (masks.KeyLengths(jnp.array([3, 7])), [3, 4, 5, 6], 0),
        (masks.Segments(jnp.ones((1, T), int), jnp.array([[2, 2, 2, 1, 1, 1, 1]])), [0, 1, 2], slice(None)),
        (masks.ArrayMask(np.arange(S)[None, None, None] > 2), [0, 1, 2], slice(None)),
    ],
)
def test_hidden_blocks_are_not_even_read(mask, hidden, rows, monkeypatch):
    monkeypatch.setattr(
        "flaxformer.components.attention.kernels.plan.chunk_for", lambda *_: (1, 1)
    )  # one row per program
    query, key, value = cases.inputs()
    clean = jax.grad(lambda *x: attend_reference(*x, mask=mask).sum(), (0, 1, 2))(query, key, value)
    key, value = poisoned(key, hidden, rows), poisoned(value, hidden, rows)
    found = jax.grad(lambda *x: small_blocks(*x, mask=mask).sum(), (0, 1, 2))(query, key, value)
    for a, b in zip(found, clean, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_memory_grows_with_length_not_with_its_square():
    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        bias = biases.TableBias(jnp.ones((2, 32)), bidirectional=False)

        def loss(query, key, value, bias):
            return attend_blockwise(query, key, value, bias=bias, mask=masks.Causal()).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(shape, shape, shape, bias).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    assert long < 4 * short
    assert long < 4096 * 4096  # bytes; one square of scores in float32 has four times as many


def test_other_transformations_go_through():
    query, key, value = cases.inputs()
    attend = functools.partial(small_blocks, mask=masks.Causal())
    expected = attend(query, key, value)
    mapped = jax.vmap(lambda *x: attend(*(y[None] for y in x))[0])(query, key, value)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    wanted = jax.grad(lambda x: attend(x, key, value).sum())(query)
    saved = jax.grad(lambda x: jax.checkpoint(attend)(x, key, value).sum())(query)
    np.testing.assert_allclose(saved, wanted, atol=1e-6)
    _, outputs = jax.lax.scan(lambda c, x: (c, attend(x, key, value)), 0, query[None])
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)


@pytest.mark.parametrize(("query_length", "key_length"), [(0, 3), (3, 0), (1, 1), (5, 1)])
def test_empty_and_single_sequences(query_length, key_length):
    arrays = cases.inputs(query_length=query_length, key_length=key_length)
    sinks = cases.normal(N, seed=3)
    for options in ({}, {"sinks": sinks, "mask": masks.Causal()}):
        actual = jax.jit(functools.partial(with_sum, **options))(*arrays)
        expected = attend_reference(*arrays, return_residuals=True, **options)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        found = jax.jit(jax.grad(lambda x: small_blocks(x, *arrays[1:], **options).sum()))(arrays[0])  # noqa: B023
        assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_extreme_numbers_stay_finite(dtype):
    query, key, value = (x.astype(jnp.dtype(dtype)) * 30 for x in cases.inputs())
    bias = np.full((1, 1, 1, S), jnp.finfo(jnp.float32).min, np.float32)
    bias[..., :2] = 0
    for options in ({"bias": bias}, {"bias": bias, "mask": masks.Padding(None, np.arange(S)[None] > 2)}):

        def loss(*x):
            return small_blocks(*x, **options).astype(jnp.float32).sum()  # noqa: B023

        total, found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)
        assert np.isfinite(total) and all(np.isfinite(x.astype(jnp.float32)).all() for x in found)


def test_sums_over_no_keys_have_the_width_of_others():
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            query, key, value = (x.astype(dtype) for x in cases.inputs(key_length=0))
            sinks = cases.normal(N, seed=3).astype(dtype)
            assert {with_sum(query, key, value, sinks=x)[1].dtype for x in (None, sinks)} == {np.dtype(dtype)}


def test_grouped_heads_are_read_in_order():
    query, key, value = cases.inputs()
    repeated = (np.repeat(x, N // K, axis=2) for x in (key, value))
    np.testing.assert_allclose(small_blocks(query, key, value), small_blocks(query, *repeated), atol=1e-6)
    assert small_blocks(query, key, value).shape == (B, T, N, H)
