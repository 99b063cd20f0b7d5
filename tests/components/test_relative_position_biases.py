import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.components.relative_position_biases import (
    RelativeAttentionAPI,
    RelativePositionBiases,
    consecutive_relative_bias,
    relative_bias,
    relative_position_bucket,
)

TABLE = jax.random.normal(jax.random.key(0), (2, 8))
VARIABLES = {"params": {"rel_embedding": TABLE}}


def biases(**options):
    return RelativePositionBiases(num_buckets=8, max_distance=12, num_heads=2, dtype=jnp.float32, **options)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share():
    distance = np.arange(0, 40)
    bucket = relative_position_bucket(-distance, bidirectional=False, num_buckets=8, max_distance=12)
    np.testing.assert_array_equal(bucket[:4], distance[:4])
    assert (bucket[12:] == 7).all()
    assert (np.diff(bucket) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(
    bidirectional=st.booleans(),
    buckets=st.integers(2, 40).map(lambda n: 2 * n),
    beyond=st.integers(1, 200),
)
def test_buckets_are_in_range_and_directions_mirror(bidirectional, buckets, beyond):
    relative = np.arange(-300, 301)
    bucket = relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=buckets, max_distance=buckets // 2 + beyond
    )
    assert bucket.dtype == np.int32 and bucket.min() == 0 and bucket.max() < buckets
    after, before = bucket[301:], bucket[:300][::-1]
    if bidirectional:
        np.testing.assert_array_equal(after, before + buckets // 2)
    else:
        assert not after.any()


def test_compiled_buckets_equal_those_of_numpy():
    relative, options = np.arange(-300, 301), {"bidirectional": True, "num_buckets": 32, "max_distance": 128}
    expected = relative_position_bucket(relative, **options)
    np.testing.assert_array_equal(jax.jit(lambda r: relative_position_bucket(r, **options))(relative), expected)
    legacy = RelativePositionBiases._relative_position_bucket(relative, computation_module=jnp)
    np.testing.assert_array_equal(legacy, expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 30), (5, 7), (7, 5), (9, 1)])
def test_consecutive_positions_are_a_case_of_any_positions(queries, keys, bidirectional):
    options = {"bidirectional": bidirectional, "max_distance": 12}
    consecutive = consecutive_relative_bias(TABLE, queries, keys, **options)
    anywhere = relative_bias(TABLE, jnp.arange(queries)[None], jnp.arange(keys)[None], **options)
    np.testing.assert_array_equal(consecutive, anywhere)


def test_gradients_of_both_computations_agree():
    weights = jax.random.normal(jax.random.key(1), (1, 2, 5, 7))
    options = {"bidirectional": True, "max_distance": 12}
    consecutive = jax.grad(lambda t: (consecutive_relative_bias(t, 5, 7, **options) * weights).sum())
    anywhere = jax.grad(
        lambda t: (relative_bias(t, jnp.arange(5)[None], jnp.arange(7)[None], **options) * weights).sum()
    )
    np.testing.assert_allclose(consecutive(TABLE), anywhere(TABLE), rtol=1e-5, atol=1e-6)


def test_each_row_of_a_batch_has_its_own_positions():
    queries, keys = jnp.array([[3], [9]]), jnp.array([[0, 1, 2, 3], [6, 7, 8, 9]])
    y = biases().apply(VARIABLES, queries, keys, False, method="bias")
    assert y.shape == (2, 2, 1, 4)
    np.testing.assert_array_equal(y[0], y[1])  # the same distances
    full = biases().apply(VARIABLES, 10, 10, False)
    np.testing.assert_array_equal(y[1], full[0, :, 9:, 6:])


def test_queries_of_one_row_broadcast_over_keys_of_many():
    y = biases().apply(VARIABLES, jnp.array([[3, 4]]), jnp.array([[0, 1], [5, 6]]), method="bias")
    assert y.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(
        y[1:], biases().apply(VARIABLES, jnp.array([[3, 4]]), jnp.array([[5, 6]]), method="bias")
    )


def test_on_device_computation_changes_no_number():
    np.testing.assert_array_equal(
        biases(on_device_computation=True).apply(VARIABLES, 6, 9), biases().apply(VARIABLES, 6, 9)
    )


def test_parameter_axes_and_types():
    module = RelativePositionBiases(8, 12, 2, "bfloat16", head_axis_name="relpos_heads")
    y, variables = module.init_with_output(jax.random.key(0), 3, 4)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["rel_embedding"].dtype == jnp.float32
    assert variables["params_axes"]["rel_embedding_axes"].names == ("relpos_heads", "relpos_buckets")
    assert isinstance(module, RelativeAttentionAPI)


def test_decoding_keeps_the_first_bias():
    first, state = biases().apply(VARIABLES, 5, 5, False, True, mutable=["cache"])
    np.testing.assert_array_equal(first, biases().apply(VARIABLES, 5, 5, False))
    other = {"params": {"rel_embedding": 0 * TABLE}}
    kept, _ = biases().apply({**other, **state}, 5, 5, False, True, mutable=["cache"])
    np.testing.assert_array_equal(kept, first)
    assert not biases().apply({**other, **state}, 5, 5, False).any()


def test_decoding_is_one_way():
    with pytest.raises(ValueError, match="decode=True came with bidirectional=True; expected bidirectional=False"):
        biases().apply(VARIABLES, 5, 5, True, True, mutable=["cache"])


def test_decoding_inside_init_is_refused():
    with pytest.raises(ValueError, match="decode=True came inside init.*Initialise with decode=False first"):
        biases().init(jax.random.key(0), 5, 5, False, True)


def test_a_cached_bias_of_other_lengths_is_refused():
    _, state = biases().apply(VARIABLES, 5, 5, False, True, mutable=["cache"])
    with pytest.raises(ValueError, match=r"cached bias has shape \(1, 2, 5, 5\); expected \(1, 2, 6, 6\)"):
        biases().apply({**VARIABLES, **state}, 6, 6, False, True, mutable=["cache"])


@pytest.mark.parametrize(("buckets", "max_distance"), [(1, 12), (8, 4)])
def test_impossible_buckets_are_refused(buckets, max_distance):
    with pytest.raises(ValueError, match=rf"there are {buckets} buckets per direction for distances up to"):
        relative_position_bucket(np.arange(3), bidirectional=False, num_buckets=buckets, max_distance=max_distance)


def test_positions_without_a_batch_axis_are_refused():
    with pytest.raises(ValueError, match=r"k_positions has shape \(3,\); expected \[batch or 1, length\]"):
        biases().apply(VARIABLES, jnp.arange(3)[None], jnp.arange(3), method="bias")
