import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.positions.learned import PositionEmbed

TABLE = jnp.arange(12.0).reshape(6, 2)
VARIABLES = {"params": {"pos_embedding": TABLE}}


def test_positions_read_rows_and_fill_with_nan_outside():
    y = PositionEmbed(6, 2).apply(VARIABLES, jnp.array([[0, 5, -1, 6, -7]]))
    np.testing.assert_array_equal(y[0, :3], TABLE[jnp.array([0, 5, 5])])
    assert jnp.isnan(y[0, 3:]).all()


def test_parameters_and_their_names():
    variables = PositionEmbed(6, 2, dtype="bfloat16").init(jax.random.key(0), jnp.array([0]))
    assert variables["params"]["pos_embedding"].dtype == jnp.float32
    assert variables["params_axes"]["pos_embedding_axes"].names == ("abspos_buckets", "embed")


def test_decoding_counts_positions_whatever_the_ids():
    embed, ids = PositionEmbed(6, 2), jnp.array([[99]])
    created, state = embed.apply(VARIABLES, ids, decode=True, mutable=["cache"])
    assert jnp.isnan(created).all()  # the call that creates the cache stands before the first position
    for step in range(3):
        y, state = embed.apply({**VARIABLES, **state}, ids, decode=True, mutable=["cache"])
        np.testing.assert_array_equal(y, TABLE[step][None, None])
    assert state["cache"]["position_embedder_index"].dtype == jnp.uint32


def test_decoding_counts_each_row_apart_when_given_a_vector():
    cache = {"position_embedder_index": jnp.array([4, 1], jnp.uint32)}
    y, state = PositionEmbed(6, 2).apply(
        {**VARIABLES, "cache": cache}, jnp.zeros((2, 1), jnp.int32), decode=True, mutable=["cache"]
    )
    np.testing.assert_array_equal(y[:, 0], TABLE[jnp.array([4, 1])])
    np.testing.assert_array_equal(state["cache"]["position_embedder_index"], [5, 2])


def test_float_positions_are_refused():
    with pytest.raises(ValueError, match="ids have dtype float32; expected an integer"):
        PositionEmbed(6, 2).apply(VARIABLES, jnp.array([0.0]))
