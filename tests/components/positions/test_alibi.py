import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.kernels.biases import AlibiBias
from flaxformer.components.positions.alibi import Alibi, alibi_slopes


def test_slopes_of_a_power_of_two_fall_geometrically():
    np.testing.assert_allclose(alibi_slopes(8), [2.0 ** -(h + 1) for h in range(8)])
    np.testing.assert_allclose(alibi_slopes(16)[:4], [2**-0.5, 2**-1.0, 2**-1.5, 2**-2.0], rtol=1e-6)
    assert alibi_slopes(1).tolist() == [2.0**-8]


@pytest.mark.parametrize("heads", [3, 6, 12, 20])
def test_other_counts_take_every_second_slope_of_the_next_power(heads):
    power = 2 ** int(np.log2(heads))
    expected = [*alibi_slopes(power), *alibi_slopes(2 * power)[0 : 2 * (heads - power) : 2]]
    np.testing.assert_allclose(alibi_slopes(heads), expected, rtol=1e-6)


def test_bias_is_lazy_and_falls_with_the_distance_of_positions():
    queries, keys = jnp.array([[3, 9], [0, 1]]), jnp.array([[0, 3, 10]])
    bias = Alibi(num_heads=2).bias(queries, keys)
    assert isinstance(bias, AlibiBias)
    expected = -np.abs(np.asarray(keys)[:, None] - np.asarray(queries)[:, :, None])
    np.testing.assert_allclose(bias.dense(2, 3)[:, 0], expected / 16)
    np.testing.assert_allclose(bias.dense(2, 3)[:, 1], expected / 256)


def test_at_least_one_head_is_expected():
    with pytest.raises(ValueError, match="ALiBi was asked for with 0 heads; expected at least 1"):
        alibi_slopes(0)
