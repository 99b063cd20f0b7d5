"""Stored arrays are read where and when they are asked for."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxformer.weights.arrays import StoredArray, in_threads, read_all, stack, take
from tests.weights import trees

ARRAY = trees.numbers(8, 6)


class Recorder:
    """A source that remembers which parts were read."""

    def __init__(self, array=ARRAY):
        self.parts = []
        self.array = array

    def __call__(self, index):
        self.parts.append(tuple((part.start, part.stop) for part in index))
        return self.array[index]

    def stored(self):
        return StoredArray(self.array.shape, self.array.dtype, self)


def test_reading_a_part_asks_for_that_part():
    source = Recorder()
    got = source.stored().read((slice(2, 4), slice(None)))
    np.testing.assert_array_equal(got, ARRAY[2:4])
    assert source.parts == [((2, 4), (0, 6))]


def test_numpy_takes_a_stored_array_for_an_array():
    array = Recorder().stored()
    np.testing.assert_array_equal(np.asarray(array), ARRAY)
    assert np.asarray(array, "float64").dtype == np.float64 and np.shape(array) == (8, 6)


def test_casting_is_put_off_until_reading():
    source = Recorder()
    array = source.stored().astype("bfloat16")
    assert array.dtype == jax.numpy.bfloat16 and not source.parts
    np.testing.assert_array_equal(array.get(), ARRAY.astype(jax.numpy.bfloat16))


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        (PartitionSpec("data", "model"), [((4 * i, 4 * i + 4), (3 * j, 3 * j + 3)) for i in (0, 1) for j in (0, 1)]),
        (PartitionSpec("data"), [((0, 4), (0, 6)), ((4, 8), (0, 6))]),
        (PartitionSpec(), [((0, 8), (0, 6))]),
    ],
)
def test_each_device_gets_its_part_and_no_part_is_read_twice(axes, parts):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    source = Recorder()
    got = source.stored().on(NamedSharding(mesh, axes))
    assert sorted(source.parts) == parts
    assert got.sharding.spec == axes
    np.testing.assert_array_equal(got, ARRAY)


def test_a_stack_is_read_from_the_layers_that_are_asked_for():
    sources = [Recorder(ARRAY + i) for i in range(4)]
    stacked = stack([source.stored() for source in sources], axis=1)
    got = stacked.read((slice(0, 8), slice(1, 3), slice(2, 3)))
    np.testing.assert_array_equal(got, np.stack([ARRAY + 1, ARRAY + 2], 1)[:, :, 2:3])
    assert [len(source.parts) for source in sources] == [0, 1, 1, 0]
    np.testing.assert_array_equal(take(stacked, 3, 1).get(), ARRAY + 3)


def test_a_tree_is_read_whole_with_other_leaves_as_they_are():
    tree = {"a": Recorder().stored(), "b": {"c": Recorder(ARRAY + 1).stored(), "version": 0, "none": None}}
    got = read_all(tree)
    trees.assert_equal(got, {"a": ARRAY, "b": {"c": ARRAY + 1, "version": 0, "none": None}})


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda x: 1 / x, [1, 0])
