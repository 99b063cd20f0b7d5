import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components import initializers
from flaxformer.components.positions.sinusoidal import FixedEmbed, sinusoidal_embedding


@pytest.mark.parametrize(("features", "scales"), [(6, {}), (7, {}), (8, {"min_scale": 0.5, "max_scale": 100.0})])
def test_the_function_of_positions_equals_the_table(features, scales):
    table = initializers.sinusoidal(**scales)(None, (40, features))
    positions = jnp.array([[0, 3, 39], [39, 1, 2]])
    np.testing.assert_allclose(sinusoidal_embedding(positions, features, **scales), table[positions], atol=5e-6)


def test_there_is_no_longest_sequence_without_a_table():
    y = sinusoidal_embedding(jnp.array([10**6]), 8)
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(jnp.sum(y**2), 4.0, rtol=1e-6)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="asked for with 3 features; expected at least 4"):
        sinusoidal_embedding(jnp.array([0]), 3)


def test_a_fixed_embedding_has_no_variables():
    y, variables = FixedEmbed(features=6, max_length=5, dtype="float32").init_with_output(
        jax.random.key(0), jnp.array([[0, 4, 5]])
    )
    assert not variables
    np.testing.assert_allclose(y[0, :2], sinusoidal_embedding(jnp.array([0, 4]), 6), atol=1e-6)
    assert jnp.isnan(y[0, 2]).all()


def test_any_initializer_may_make_the_table():
    embed = FixedEmbed(features=2, max_length=3, embedding_init=lambda key, shape, dtype: jnp.full(shape, 7, dtype))
    assert (embed.apply({}, jnp.array([2])) == 7).all()


def test_decoding_counts_positions():
    embed, ids, state = FixedEmbed(features=6, max_length=5), jnp.array([[0]]), {}
    seen = []
    for _ in range(3):
        y, state = embed.apply(state, ids, decode=True, mutable=["cache"])
        seen.append(y[0, 0])
    assert jnp.isnan(seen[0]).all()
    np.testing.assert_allclose(jnp.stack(seen[1:]), sinusoidal_embedding(jnp.arange(2), 6), atol=1e-6)


def test_the_sinusoidal_table_is_float32_only():
    with pytest.raises(ValueError, match="float32"):
        FixedEmbed(features=6, dtype=jnp.bfloat16).apply({}, jnp.array([0]))


def test_float_positions_are_refused():
    with pytest.raises(ValueError, match="ids have dtype float32; expected an integer"):
        FixedEmbed(features=6).apply({}, jnp.array([0.0]))
