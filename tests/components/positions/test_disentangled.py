import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.positions.disentangled import DistanceTable, disentangled_scores, distance_index

B, T, S, N, H, BUCKETS, LIMIT = 2, 4, 6, 3, 5, 6, 16


def index_by_hand(distance, buckets, limit):
    middle = buckets // 2
    bucket = distance
    if abs(distance) > middle:
        growing = math.ceil(math.log(abs(distance) / middle) / math.log((limit - 1) / middle) * (middle - 1))
        bucket = math.copysign(growing + middle, distance)
    return min(max(int(bucket) + buckets, 0), 2 * buckets - 1)


@pytest.mark.parametrize(("buckets", "limit"), [(6, 32), (256, 512), (4, 10), (8, 9)])
def test_near_distances_have_a_row_each_and_far_ones_share(buckets, limit):
    distances = np.arange(-3 * limit, 3 * limit)
    expected = [index_by_hand(d, buckets, limit) for d in distances.tolist()]
    np.testing.assert_array_equal(distance_index(distances, buckets, limit), expected)
    np.testing.assert_array_equal(distance_index(jnp.asarray(distances), buckets, limit), expected)


def test_both_terms_read_the_row_of_the_distance():
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(B, length, N, H)).astype(np.float32) for length in (T, S))
    by_query, by_key = rng.normal(size=(2, 2 * BUCKETS, N, H)).astype(np.float32)
    q_positions, k_positions = np.array([[0, 1, 2, 30], [5, 6, 0, 1]]), np.arange(S)[None]
    to_position, to_content = np.zeros((2, B, N, T, S))
    for b, n, t, s in np.ndindex(to_position.shape):
        row = index_by_hand(int(q_positions[b, t] - k_positions[0, s]), BUCKETS, LIMIT)
        to_position[b, n, t, s] = np.dot(query[b, t, n], by_key[row, n])
        to_content[b, n, t, s] = np.dot(key[b, s, n], by_query[row, n])
    at = (q_positions, k_positions, LIMIT)
    np.testing.assert_allclose(disentangled_scores(query, key, None, by_key, *at), to_position, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(disentangled_scores(query, key, by_query, None, *at), to_content, rtol=1e-4, atol=1e-5)
    both = disentangled_scores(query, key, by_query, by_key, *at)
    np.testing.assert_allclose(both, to_position + to_content, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="neither position_query nor position_key was given"):
        disentangled_scores(query, key, None, None, *at)


def test_table_is_normed_and_named():
    table, variables = DistanceTable(4, 6, nn.LayerNorm(), "bfloat16").init_with_output(jax.random.key(0))
    assert table.shape == (8, 6) and table.dtype == jnp.bfloat16
    np.testing.assert_allclose(table.astype(jnp.float32).mean(-1), 0, atol=1e-2)
    assert variables["params_axes"]["rel_embeddings_axes"].names == ("relpos_buckets", "embed")


@pytest.mark.parametrize(("buckets", "limit"), [(1, 10), (8, 5)])
def test_buckets_that_cannot_grow_are_refused(buckets, limit):
    with pytest.raises(ValueError, match="buckets per direction for distances up to"):
        distance_index(np.arange(3), buckets, limit)


def test_without_a_furthest_distance_every_bucket_holds_one():
    index = distance_index(np.arange(-5, 6), buckets=3, max_distance=None)
    assert index.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 5]
