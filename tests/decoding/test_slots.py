import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.decoding.slots import rewound, widened
from flaxformer.step import Step

START = Step.start(jnp.array([[False, True, True], [True, True, True]]), 9).advance()


def assert_same(ours, expected):
    for name in ("positions", "slot", "key_valid"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name), err_msg=name)
    seen = np.asarray(expected.key_valid)
    np.testing.assert_array_equal(np.asarray(ours.key_positions)[seen], np.asarray(expected.key_positions)[seen])


def test_keeping_everything_is_stepping_one_by_one():
    after = START
    for _ in range(3):
        after = after.advance()
    assert_same(rewound(START, jnp.array([3, 3])), after)
    assert_same(widened(START, 3).advance(), after)


def test_keeping_nothing_changes_nothing():
    assert_same(rewound(START, jnp.zeros(2, jnp.int32)), START)


def test_a_row_that_keeps_less_leaves_slots_empty():
    after = jax.jit(rewound)(START, jnp.array([3, 1]))
    assert int(after.slot) == 6
    np.testing.assert_array_equal(after.positions, [[5], [4]])
    np.testing.assert_array_equal(after.key_valid[0], [0, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(after.key_valid[1], [1, 1, 1, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(after.key_positions[1][jnp.array([0, 1, 2, 3, 6])], [0, 1, 2, 3, 4])
