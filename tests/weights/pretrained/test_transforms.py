"""Every transform is undone by its inverse, and may be read in parts."""

import numpy as np
import pytest

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.pretrained.transforms import Grouped, Joined, Patches, Row, Rows, Same, Transposed


def numbers(*shape):
    return np.arange(np.prod(shape)).reshape(shape)


KERNELS = [(3, 4), (3, 2), (3, 2)]
CASES = [
    (Same(), [(3, 4)], (3, 4)),
    (Transposed(), [(3, 4)], (4, 3)),
    (Row(), [(3,)], (1, 3)),
    (Rows(2), [(3,)], (1, 1, 3)),
    (Joined(), [(3, 4), (3, 4), (3, 4)], (3, 12)),
    (Joined(transpose=True), KERNELS, (8, 3)),
    (Joined(), [(4,), (2,)], (6,)),
    (Grouped(2), KERNELS, (8, 3)),
    (Grouped(2), [(4,), (2,), (2,)], (8,)),
    (Patches(2, 3), [(12, 5)], (5, 2, 2, 3)),
]


@pytest.mark.parametrize(("transform", "ours", "theirs"), CASES)
def test_what_is_loaded_is_saved_as_it_was(transform, ours, theirs):
    assert transform.shape(ours) == theirs
    array = numbers(*theirs)
    loaded = transform.load(StoredArray.of(array), ours)
    assert [part.shape for part in loaded] == ours
    for part in loaded:
        whole, index = part.read(), tuple(slice(1, size) for size in part.shape)
        assert whole.shape == part.shape
        np.testing.assert_array_equal(part.read(index), whole[index])
    saved = transform.save(loaded)
    np.testing.assert_array_equal(saved.read(), array)
    np.testing.assert_array_equal(
        saved.read(tuple(slice(0, 1) for _ in theirs)), array[tuple(slice(0, 1) for _ in theirs)]
    )


def test_grouped_heads_belong_together():
    """Two groups of two queries, a key and a value, each of one row."""
    query, key, value = Grouped(2).load(StoredArray.of(numbers(8, 1)), [(1, 4), (1, 2), (1, 2)])
    assert (query.read().tolist(), key.read().tolist(), value.read().tolist()) == ([[0, 1, 4, 5]], [[2, 6]], [[3, 7]])


def test_patches_are_read_row_by_row_with_channels_last():
    (kernel,) = Patches(1, 2).load(StoredArray.of(numbers(1, 3, 1, 2)), [(6, 1)])
    assert kernel.read()[:, 0].tolist() == [0, 2, 4, 1, 3, 5]
