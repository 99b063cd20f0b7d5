import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.positions.shaw import ShawKeys, relative_key_scores

B, T, S, N, H, LIMIT = 2, 4, 6, 3, 5, 2
QUERY = jax.random.normal(jax.random.key(0), (B, T, N, H))
KEY = jax.random.normal(jax.random.key(1), (B, S, N, H))
Q_POSITIONS, K_POSITIONS = np.array([[0, 1, 2, 3], [5, 6, 0, 1]]), np.arange(S)[None]


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_scores_are_products_with_the_vector_of_the_distance(per_head, bidirectional):
    rows = 2 * LIMIT + 1 if bidirectional else LIMIT + 1
    table = jax.random.normal(jax.random.key(2), (rows, N, H) if per_head else (rows, H))
    scores = relative_key_scores(QUERY, table, Q_POSITIONS, K_POSITIONS, bidirectional)
    expected = np.zeros((B, N, T, S))
    for b, n, t, s in np.ndindex(expected.shape):
        distance = np.clip(K_POSITIONS[0, s] - Q_POSITIONS[b, t], -LIMIT, LIMIT if bidirectional else 0)
        vector = table[distance + LIMIT, n] if per_head else table[distance + LIMIT]
        expected[b, n, t, s] = np.dot(QUERY[b, t, n], vector)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_scale_is_that_of_the_layer():
    def bias(scale):
        keys = ShawKeys(LIMIT, num_heads=N, scale=scale)
        args = (QUERY.astype("bfloat16"), KEY, Q_POSITIONS, K_POSITIONS)
        return keys.init_with_output(jax.random.key(0), *args, method="scores_bias")

    (plain, variables), (scaled, _) = bias(1.0), bias(None)
    np.testing.assert_allclose(scaled, plain / H**0.5, rtol=1e-6)
    assert plain.dtype == jnp.float32
    assert variables["params"]["relative_keys"].shape == (2 * LIMIT + 1, N, H)
    assert variables["params_axes"]["relative_keys_axes"].names == ("relpos_buckets", "heads", "kv")


def test_tables_of_other_heads_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 2, 5\) .* expected width 5, and 3 heads"):
        relative_key_scores(QUERY, jnp.ones((5, 2, H)), Q_POSITIONS, K_POSITIONS)
    with pytest.raises(ValueError, match="Was num_heads changed"):
        relative_key_scores(QUERY, jnp.ones((5, H + 1)), Q_POSITIONS, K_POSITIONS)
