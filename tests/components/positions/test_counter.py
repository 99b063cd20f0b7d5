import flax.linen as nn
import numpy as np

from flaxformer.components.positions.counter import next_position


class Counter(nn.Module):
    @nn.compact
    def __call__(self):
        return next_position(self)


def test_counts_from_minus_one_wrapped():
    seen, state = [], {}
    for _ in range(3):
        position, state = Counter().apply(state, mutable=["cache"])
        seen.append(position)
    np.testing.assert_array_equal(np.stack(seen), [[2**32 - 1], [0], [1]])
    assert seen[0].dtype == np.uint32
