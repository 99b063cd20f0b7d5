import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.data.packing import fill_fraction, pack

PAIRS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), max_size=60)


@settings(max_examples=100, deadline=None)
@given(sizes=PAIRS, open_rows=st.integers(1, 5))
def test_every_item_comes_once_and_no_row_overflows(sizes, open_rows):
    rows = list(pack(range(len(sizes)), sizes.__getitem__, (8, 6), open_rows))
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(sizes)))
    for row in rows:
        assert np.all(np.sum([sizes[item] for item in row], axis=0) <= (8, 6))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 10), min_size=1, max_size=60))
def test_rows_are_more_than_half_full_but_one(sizes):
    rows = list(pack(range(len(sizes)), lambda i: (sizes[i],), (10,), open_rows=len(sizes)))
    assert sum(2 * sum(sizes[item] for item in row) <= 10 for row in rows) <= 1


def test_oldest_row_with_room_takes_the_item():
    assert list(pack([4, 3, 1, 2], lambda n: (n,), (5,))) == [[4, 1], [3, 2]]


def test_the_fullest_row_is_closed_when_no_more_may_be_opened():
    rows = pack([3, 4, 4, 2], lambda n: (n,), (5,), open_rows=2)
    assert list(rows) == [[4], [3, 2], [4]]


def test_endless_items_are_packed_as_they_come():
    rows = pack(itertools.cycle([1, 2]), lambda n: (n,), (6,))
    assert list(itertools.islice(rows, 2)) == [[1, 2, 1, 2], [1, 2, 1, 2]]


def test_fill_fraction_counts_both_axes():
    assert fill_fraction([[0, 1], [2]], np.array([[2, 1], [2, 1], [4, 2]]), (4, 2)) == 1.0
    assert fill_fraction([[0], [1]], np.array([[2, 1], [2, 1]]), (4, 2)) == 0.5


@pytest.mark.parametrize("size", [(6,), (3, 3)])
def test_too_long_items_are_refused(size):
    with pytest.raises(ValueError, match=r"an example takes \(.*\) tokens; expected at most \(5,\)"):
        list(pack([size], lambda item: item, (5,)))


def test_packing_without_open_rows_is_refused():
    with pytest.raises(ValueError, match="open_rows is 0; expected at least 1"):
        list(pack([1], lambda n: (n,), (5,), open_rows=0))
