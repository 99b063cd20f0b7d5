import jax
import numpy as np
import pytest

from flaxformer.components.attention.blocks import Place
from flaxformer.components.attention.kernels import dropout

WHOLE = Place(0, 2, 0, 4, 0, 64, 0, 128)


def kept(place=WHOLE, rate=0.3, key=0, broadcast=False):
    return np.asarray(dropout.kept(dropout.seeds_from(jax.random.key(key)), rate, place, 4, 64, broadcast))


def test_any_block_is_a_part_of_the_whole():
    block = kept(Place(1, 1, 2, 2, 16, 8, 32, 64))
    np.testing.assert_array_equal(block, kept()[1:, 2:, 16:24, 32:96])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_holds_along_every_axis(rate):
    dropped = ~kept(rate=rate)
    for axes in [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]:
        share = dropped.mean(axes)
        count = dropped.size / share.size
        assert np.abs(share - rate).max() < 5 * np.sqrt(rate * (1 - rate) / count)


def test_neighbours_and_keys_are_independent():
    signs = 2.0 * kept(rate=0.5) - 1
    limit = 5 / np.sqrt(signs.size)
    for axis in range(4):
        assert abs((signs * np.roll(signs, 1, axis)).mean()) < limit
    assert abs((signs * (2.0 * kept(rate=0.5, key=1) - 1)).mean()) < limit


def test_broadcasting_drops_the_same_keys_for_all_queries():
    one = kept(broadcast=True)
    assert one.shape == (2, 4, 1, 128)
    np.testing.assert_array_equal(one, kept(WHOLE._replace(query=8, queries=8), broadcast=True))
