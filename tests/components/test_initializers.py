import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.initializers import sinusoidal, truncated_normal


def test_sinusoidal_rows_turn_at_a_frequency_per_column():
    table = sinusoidal(min_scale=1.0, max_scale=100.0)(None, (7, 6))
    t = np.arange(7.0)
    for column, frequency in enumerate([1.0, 0.1, 0.01]):
        np.testing.assert_allclose(table[:, column], np.sin(t * frequency), atol=1e-6)
        np.testing.assert_allclose(table[:, column + 3], np.cos(t * frequency), atol=1e-6)


def test_odd_last_column_is_zero():
    table = sinusoidal()(None, (4, 5))
    assert table.shape == (4, 5)
    assert not table[:, 4].any()


def test_sinusoidal_refuses_another_dtype():
    with pytest.raises(ValueError, match="sinusoidal got dtype bfloat16; expected float32"):
        sinusoidal(dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="asked for in float16; expected float32"):
        sinusoidal()(None, (4, 4), jnp.float16)


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (4, 3)])
def test_sinusoidal_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(length, features\) with at least 4 features"):
        sinusoidal()(None, shape)


def test_truncated_normal_stays_within_two_deviations():
    x = truncated_normal(mean=3.0, stddev=0.5)(jax.random.key(0), (1000,))
    assert x.min() >= 2.0
    assert x.max() <= 4.0
    np.testing.assert_allclose(x.mean(), 3.0, atol=0.05)
    np.testing.assert_allclose(x.std(), 0.5 * 0.88, atol=0.03)


def test_truncated_normal_takes_the_dtype_of_the_call():
    assert truncated_normal()(jax.random.key(0), (3,)).dtype == jnp.float32
    assert truncated_normal(dtype="bfloat16")(jax.random.key(0), (3,)).dtype == jnp.bfloat16
    assert truncated_normal()(jax.random.key(0), (3,), jnp.bfloat16).dtype == jnp.bfloat16
