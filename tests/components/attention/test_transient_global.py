"""Blocks as published, attention to a window and globals written out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.masks import Padding, Segments
from flaxformer.components.attention.transient_global import (
    TokenAndGlobalBiases,
    TransientGlobalAttention,
    block_ids,
)

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6)), jnp.float32)
LENGTHS = np.array([8, 5])
VALID = jnp.arange(8) < jnp.asarray(LENGTHS)[:, None]
LAYER = TransientGlobalAttention(num_heads=2, radius=1, tokens_per_block=3)


def test_an_incomplete_block_joins_the_one_before_and_short_rows_have_none():
    valid = jnp.arange(8) < jnp.array([[8], [6], [5], [2]])
    assert block_ids(valid, 3).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, -1, -1],
        [0, 0, 0, 0, 0, -1, -1, -1],
        [-1] * 8,
    ]


def test_tokens_see_their_window_and_the_summary_of_every_block():
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 8, 8)), jnp.float32)
    biases = TokenAndGlobalBiases(num_buckets=8, max_distance=12, num_heads=2, dtype="float32")
    tables = biases.init(jax.random.key(1), 8, 8)
    variables = LAYER.init(jax.random.key(0), X, X)

    @jax.jit
    def attended(x):
        return LAYER.apply(
            variables, x, x, Padding(VALID, VALID), bias, bias_module=biases.bind(tables), enable_dropout=False
        )

    params = jax.tree.map(np.asarray, variables["params"])
    found = attended(X)
    for row, ids in enumerate(([0, 0, 0, 1, 1, 1, 1, 1], [0] * 5)):
        x = np.asarray(X)[row, : LENGTHS[row]]
        sums = np.stack([x[np.array(ids) == g].sum(0) for g in sorted(set(ids))])
        sums = sums / np.sqrt((sums**2).mean(-1, keepdims=True) + 1e-6)
        for t in range(len(x)):
            near = [s for s in range(len(x)) if abs(s - t) <= 1]
            distances = jnp.asarray([[[g - ids[t] for g in range(len(sums))]]])
            far = biases.apply(tables, distances, method="to_globals")[0, :, 0]
            keys = np.concatenate([x[near], sums])
            expected = 0
            for head in range(2):
                part = slice(3 * head, 3 * head + 3)
                query, key, value = (params[name]["kernel"][:, part] for name in ("query", "key", "value"))
                scores = (keys @ key) @ (x[t] @ query)
                scores = scores + np.concatenate([np.asarray(bias)[0, head, t, near], far[head]])
                weights = np.exp(scores - scores.max())
                expected += (weights / weights.sum()) @ (keys @ value) @ params["out"]["kernel"][part]
            np.testing.assert_allclose(found[row, t], expected, atol=2e-5)
    moved = attended(X.at[1, 5:].set(9.0))
    np.testing.assert_array_equal(moved[1, :5], found[1, :5])


def test_packed_rows_and_other_keys_are_refused():
    ids = jnp.ones((2, 8), jnp.int32)
    with pytest.raises(ValueError, match="packed rows: True, .*expected one shape, one example per row"):
        LAYER.init(jax.random.key(0), X, X, Padding(VALID, VALID) & Segments(ids, ids))
    with pytest.raises(ValueError, match=r"inputs_kv of shape \(2, 7, 6\) for inputs_q of shape \(2, 8, 6\)"):
        LAYER.init(jax.random.key(0), X, X[:, 1:])
