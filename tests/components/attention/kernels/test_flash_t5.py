import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases, flash_t5_tile
from flaxformer.components.attention.kernels.flash_t5 import attend_flash_t5
from flaxformer.components.attention.kernels.reference import attend_reference
from flaxformer.components.relative_position_biases import relative_position_bucket
from tests.components.attention.kernels.cases import normal

B, T, S, N, K, H = 2, 40, 37, 4, 2, 16
interpreted = functools.partial(attend_flash_t5, interpret=True, block=16)
SEGMENTS = masks.Segments(np.arange(T)[None] // 15, np.arange(S)[None] // 15)


@pytest.mark.parametrize(("count", "bidirectional", "far"), [(32, True, 128), (32, False, 128), (6, True, 9)])
def test_steps_are_t5s_buckets(count, bidirectional, far):
    relative = np.arange(-far - 20, far + 20, dtype=np.int32)
    rule = {"bidirectional": bidirectional, "num_buckets": count, "max_distance": far}
    buckets = flash_t5_tile.Buckets(count, bidirectional, far)
    np.testing.assert_array_equal(buckets.of(relative), relative_position_bucket(relative, **rule))
    last = relative_position_bucket(np.array([-far * 10]), **rule)
    np.testing.assert_array_equal(buckets.of(np.array([-buckets.far])), last)


@pytest.mark.parametrize(("bidirectional", "right"), [(True, None), (False, 0), (False, None)])
def test_tiles_of_one_bucket_have_one(bidirectional, right):
    buckets = flash_t5_tile.Buckets(8, bidirectional, 12)
    setting = flash_t5_tile.Setting(1.0, None, right, buckets, 1, 4, True, None)
    for i, j in np.ndindex(9, 9):
        values = np.unique(buckets.of(flash_t5_tile.relative(setting, i, j)))
        if flash_t5_tile.one_bucket(setting, jnp.int32(i), jnp.int32(j)):
            assert len(values) == 1
        elif i - j > 4:
            assert len(values) > 1


CASES = {
    "causal": (masks.Causal(), False, 8),
    "both ways, segments": (SEGMENTS, True, 6),
    "window, a row without keys": (masks.Window(5, 3) & masks.KeyLengths(np.array([0, 30])), True, 8),
}


def results(attend, name):
    mask, bidirectional, count = CASES[name]
    weights, weights_of_sum = normal(B, T, N, H, seed=4), normal(B, N, T, seed=5)

    def loss(query, key, value, table):
        bias = biases.TableBias(table, bidirectional, 12)
        output, total = attend(query, key, value, bias=bias, mask=mask, return_residuals=True)
        finite = jnp.isfinite(total)
        return (output * weights).sum() + jnp.where(finite, total * weights_of_sum, 0).sum(), (output, total)

    arrays = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2), normal(N, count, seed=3)
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*arrays)
    return *outputs, *gradients  # not the loss, thousands of these that cancel


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_definition(name):
    for a, b in zip(results(interpreted, name), results(attend_reference, name), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mask", [masks.Causal() & masks.KeyLengths(np.array([200])), masks.Window(30, 7), None])
def test_both_passes_can_be_said_in_triton(dtype, mask):
    """Without a GPU: the kernels are lowered to Triton's language, as far as can be done without one."""
    query, key = (jax.ShapeDtypeStruct((1, 256, heads, 64), dtype) for heads in (4, 2))

    def loss(query, key, value, table):
        return attend_flash_t5(query, key, value, bias=biases.TableBias(table), mask=mask).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(query, key, key, jax.ShapeDtypeStruct((4, 32), jnp.float32))
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("gpu.triton") == 3


def test_the_square_never_exists():
    query = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.bfloat16)

    def loss(query, key, value, table):
        output = attend_flash_t5(query, key, value, bias=biases.TableBias(table), mask=masks.Causal())
        return output.astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(query, query, query, jnp.ones((1, 32)))
    sizes = [v.aval.size for equation in jaxpr.jaxpr.eqns for v in equation.outvars]
    assert max(sizes) <= 4096 * 64
