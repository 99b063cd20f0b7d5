"""The full cache keeps what it is given, in the type it is told, under either protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.caches import FullCache, RingCache
from flaxformer.components.attention.masks import Causal
from flaxformer.step import Step
from tests.contracts import models

X = np.random.default_rng(0).normal(size=(2, 4, models.WIDTH)).astype(np.float32)


def made(cache):
    layer = models.attention(cache=cache)
    return layer, layer.init(jax.random.key(0), X, X)["params"]


def test_keys_may_be_kept_in_half_precision():
    layer, params = made(FullCache("bfloat16"))
    step = Step.start(jnp.ones((1, 3), bool), 4)
    first, changed = layer.apply({"params": params}, X[:, :3], X[:, :3], Causal(), step=step, mutable=["cache"])
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("bfloat16")}
    last, changed = layer.apply(
        {"params": params, **changed}, X[:, 3:], X[:, 3:], step=step.advance(), mutable=["cache"]
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("bfloat16")}
    expected = layer.apply({"params": params}, X, X, Causal())
    assert last.dtype == expected.dtype
    np.testing.assert_allclose(jnp.concatenate([first, last], 1), expected, atol=2e-2)


@pytest.mark.parametrize("cache", [FullCache("bfloat16"), RingCache(2, "bfloat16"), RingCache(2)])
def test_t5x_counts_slots_under_every_kind(cache):
    layer, params = made(cache)
    variables = layer.init(jax.random.key(0), X, X, decode=True)
    state = {"cache": variables["cache"]}
    dtype = cache.dtype or "float32"
    outputs = []
    for t in range(4):
        x = X[:, t : t + 1]
        output, state = layer.apply({"params": params, **state}, x, x, decode=True, mutable=["cache"])
        outputs.append(output)
    assert state["cache"]["cached_key"].dtype == dtype and state["cache"]["cached_key"].shape[-1] == 4
    assert int(state["cache"]["cache_index"]) == 4
    expected = layer.apply({"params": params}, X, X, Causal())
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), expected, atol=2e-2 if cache.dtype else 2e-5)
