import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.blocks import Grid
from flaxformer.components.attention.masks import HIDDEN, VISIBLE, Causal, KeyLengths, Padding, Segments, Window
from flaxformer.components.attention.reach import Blocks, Dilated, Flagged, Global, RandomBlocks

B, T, S = 2, 6, 8


def pairwise(sees, query_length=T, key_length=S):
    """The definition: `sees(b, t, s)` for every pair."""
    return np.array([[[bool(sees(b, t, s)) for s in range(key_length)] for t in range(query_length)] for b in range(B)])


def picture(mask, query_length=T, key_length=S):
    dense = mask.dense(query_length, key_length)
    assert dense.ndim == 4 and dense.dtype == bool
    return np.asarray(jnp.broadcast_to(dense, (B, 1, query_length, key_length)))[:, 0]


def integers(shape, low, high):
    size = int(np.prod(shape))
    values = st.lists(st.integers(low, high), min_size=size, max_size=size)
    return values.map(lambda x: np.array(x, np.int32).reshape(shape))


flags = lambda length: integers((B, length), 0, 1).map(lambda x: x.astype(bool))  # noqa: E731
reach = st.none() | st.integers(0, 4)
bound = st.booleans().flatmap(
    lambda bind: st.tuples(integers((B, T), 0, 9), integers((1, S), 0, 9)) if bind else st.just((None, None))
)
single_masks = st.one_of(
    bound.map(lambda at: Causal().at(*at)),
    st.tuples(reach, reach, bound).map(lambda x: Window(x[0], x[1]).at(*x[2])),
    st.tuples(integers((B, T), 0, 2), integers((B, S), 0, 2)).map(lambda x: Segments(*x)),
    st.tuples(st.none() | flags(T), st.none() | flags(S)).map(lambda x: Padding(*x)),
    integers((B,), 0, S).map(KeyLengths),
    integers((B, 2, T, S), 0, 1).map(lambda x: masks.ArrayMask(x.astype(bool))),
    integers((1, 1, 1, S), 0, 1).map(lambda x: masks.ArrayMask(x.astype(bool))),
    st.tuples(st.integers(1, 3), reach, reach, bound).map(lambda x: Dilated(*x[:3]).at(*x[3])),
    st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 1), bound).map(lambda x: Blocks(*x[:3]).at(*x[3])),
    st.tuples(st.sampled_from([((0, 1),), ((1, 3), (5, 6))]), st.booleans(), bound).map(
        lambda x: Global(*x[:2]).at(*x[2])
    ),
    st.tuples(flags(T), flags(S)).map(lambda x: Flagged(*x)),
    st.tuples(st.integers(1, 3), st.integers(0, 2), bound).map(lambda x: RandomBlocks(x[0], 4, x[1]).at(*x[2])),
)
any_mask = st.recursive(
    single_masks,
    lambda a: st.tuples(a, a).map(lambda x: x[0] & x[1]) | st.tuples(a, a).map(lambda x: x[0] | x[1]),
    max_leaves=3,
)
some = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


@some
@hypothesis.given(bound, reach, reach)
def test_window_is_its_pairwise_definition(at, left, right):
    query, key = (np.arange(n)[None] if x is None else x for x, n in zip(at, (T, S), strict=True))

    def sees(b, t, s):
        distance = key[b % len(key), s] - query[b % len(query), t]
        return (left is None or distance >= -left) and (right is None or distance <= right)

    np.testing.assert_array_equal(picture(Window(left, right).at(*at)), pairwise(sees))


@some
@hypothesis.given(bound)
def test_causal_is_a_window_without_a_future(at):
    np.testing.assert_array_equal(picture(Causal().at(*at)), picture(Window(None, 0).at(*at)))


@some
@hypothesis.given(integers((B, T), 0, 2), integers((B, S), 0, 2), flags(T), flags(S), integers((B,), 0, S))
def test_other_masks_are_their_pairwise_definitions(query_ids, key_ids, query_flags, key_flags, lengths):
    cases = [
        (Segments(query_ids, key_ids), lambda b, t, s: query_ids[b, t] == key_ids[b, s]),
        (Padding(query_flags, key_flags), lambda b, t, s: query_flags[b, t] and key_flags[b, s]),
        (Padding(key_valid=key_flags), lambda b, t, s: key_flags[b, s]),
        (Padding(), lambda b, t, s: True),
        (KeyLengths(lengths), lambda b, t, s: s < lengths[b]),
        (masks.prefix_lm(query_flags, key_flags), lambda b, t, s: s <= t or (query_flags[b, t] and key_flags[b, s])),
    ]
    for mask, sees in cases:
        np.testing.assert_array_equal(picture(mask), pairwise(sees))


@some
@hypothesis.given(any_mask, any_mask)
def test_and_and_or_are_logical(first, second):
    a, b = (np.broadcast_to(x.dense(T, S), (B, 2, T, S)) for x in (first, second))
    np.testing.assert_array_equal(np.broadcast_to((first & second).dense(T, S), a.shape), a & b)
    np.testing.assert_array_equal(np.broadcast_to((first | second).dense(T, S), a.shape), a | b)


@some
@hypothesis.given(any_mask, st.sampled_from([(0, 2, 4, 4), (3, 3, 0, 8), (4, 1, 5, 2), (0, 6, 7, 1)]))
def test_block_is_a_slice_of_the_dense_picture(mask, place):
    query_start, query_size, key_start, key_size = place
    dense = np.broadcast_to(mask.dense(T, S), (B, 2, T, S))
    expected = dense[..., query_start : query_start + query_size, key_start : key_start + key_size]
    for start in (lambda x: x, jnp.int32):
        block = mask.block(start(query_start), query_size, start(key_start), key_size)
        np.testing.assert_array_equal(np.broadcast_to(block, expected.shape), expected)


@some
@hypothesis.given(any_mask, st.sampled_from([(2, 2), (3, 4), (6, 8), (1, 1)]), st.booleans())
def test_visibility_never_lies(mask, sizes, known):
    if not known:
        mask = jax.tree.map(jnp.asarray, mask)
    grid = Grid(T // sizes[0], sizes[0], S // sizes[1], sizes[1])
    visibility = mask.visibility(grid)
    assert not known or isinstance(visibility, np.ndarray)
    dense = np.broadcast_to(mask.dense(T, S), (B, 2, T, S))
    blocks = dense.reshape(B, 2, grid.query_count, sizes[0], grid.key_count, sizes[1])
    visibility = np.broadcast_to(visibility, (B, grid.query_count, grid.key_count))
    assert not blocks.any((1, 3, 5))[visibility == HIDDEN].any()
    assert blocks.all((1, 3, 5))[visibility == VISIBLE].all()


def test_visibility_tells_what_kernels_skip():
    grid = Grid(3, 2, 3, 2)
    np.testing.assert_array_equal(Causal().visibility(grid)[0], [[1, 0, 0], [2, 1, 0], [2, 2, 1]])
    np.testing.assert_array_equal(Window(1, 1).visibility(grid)[0], [[2, 1, 0], [1, 2, 1], [0, 1, 2]])
    ids = np.array([[0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(Segments(ids, ids).visibility(grid)[0], [[2, 0, 0], [0, 2, 2], [0, 2, 2]])
    np.testing.assert_array_equal(KeyLengths(np.array([3])).visibility(grid)[0], [[2, 1, 0]] * 3)
    valid = np.array([[True, True, True, False, False, False]])
    np.testing.assert_array_equal(Padding(valid, valid).visibility(grid)[0], [[2, 1, 0], [1, 1, 0], [0, 0, 0]])


@some
@hypothesis.given(any_mask)
def test_padding_to_longer_sequences_keeps_the_picture(mask):
    padded = np.broadcast_to(mask.pad(T + 3, S + 1).dense(T + 3, S + 1), (B, 2, T + 3, S + 1))
    np.testing.assert_array_equal(padded[..., :T, :S], np.broadcast_to(mask.dense(T, S), (B, 2, T, S)))


def test_masks_pass_through_jit_as_pytrees():
    mask = (Causal() & Window(left=2)) | Padding(jnp.ones((1, T), bool), jnp.arange(S)[None] == 0)
    np.testing.assert_array_equal(jax.jit(lambda mask: mask.dense(T, S))(mask), mask.dense(T, S))
    np.testing.assert_array_equal(jax.jit(lambda start: mask.block(start, 2, 3, 2))(4), mask.dense(T, S)[..., 4:, 3:5])


def test_conjunctions_stay_flat():
    assert len((Causal() & Window(left=1) & Padding()).parts) == 3
    assert len((Causal() | (Window(left=1) | Padding())).parts) == 3


def test_as_mask_reads_numbers_above_zero_as_visible():
    array = jnp.array([[[[2.0, 0.0, -1.0]]]])
    np.testing.assert_array_equal(masks.as_mask(array).dense(1, 3), array > 0)
    np.testing.assert_array_equal(masks.as_mask(array.astype(int)).dense(1, 3), array > 0)
    assert masks.as_mask(None) is None
    assert masks.as_mask(mask := Causal()) is mask


def test_combine_joins_what_is_given():
    array = np.ones((1, 1, T, S), bool)
    assert masks.combine(None, None) is None
    assert masks.combine(None, mask := Causal()) is mask
    combined = masks.combine(Causal() & Window(left=2), None, array)
    assert len(combined.parts) == 3
    np.testing.assert_array_equal(combined.dense(T, S), (Causal() & Window(left=2)).dense(T, S))


def test_array_masks_may_lack_leading_axes():
    array = np.tri(T, S, dtype=bool)
    np.testing.assert_array_equal(masks.as_mask(array).dense(T, S), array)


def test_describe_draws_one_row_and_head():
    array = np.zeros((2, 2, 2, 3), bool)
    array[1, 0, 1] = True
    assert masks.describe(array, 2, 3, row=1) == "...\nxxx"
    assert masks.describe(Causal(), 2, 3, row=1, head=1) == "x..\nxx."


@pytest.mark.parametrize(
    "mask",
    [
        Segments(np.zeros((B, T)), np.zeros((B, T))),
        Padding(key_valid=np.ones(S, bool)),
        Causal().at(None, np.arange(S)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(mask):
    with pytest.raises(ValueError, match=r"expected \[#B S\] = \(#B, 8\)"):
        mask.dense(T, S)


def test_pictures_and_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Was it built for other lengths"):
        (Causal() & masks.ArrayMask(np.ones((1, 1, T, T), bool))).dense(T, S)
    with pytest.raises(ValueError, match="one length per row"):
        KeyLengths(np.ones((B, S), np.int32)).dense(T, S)
