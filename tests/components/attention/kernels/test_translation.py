import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels.translation import Plain, expect, multiple_of, segment_ids, translate

IDS = np.array([[1, 1, 2]])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, Plain()),
        (masks.Causal(), Plain(right=0)),
        (masks.Causal() & masks.Window(4, 2) & masks.Window(3), Plain(left=3, right=0)),
        (masks.Segments(IDS, IDS) & masks.Window(right=1), Plain(right=1, query_ids=IDS, key_ids=IDS)),
    ],
)
def test_known_masks_are_named(mask, expected):
    found = translate(mask)
    assert found == expected
    assert found.causal == (expected[:2] == (None, 0)) and found.everywhere == (expected[:2] == (None, None))


def test_the_shorter_of_two_lengths_counts():
    mask = masks.KeyLengths(np.array([2, 5])) & masks.KeyLengths(np.array([3]))
    np.testing.assert_array_equal(translate(mask).key_lengths, [2, 3])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (masks.Padding(), "the mask Padding is not supported"),
        (masks.Causal() | masks.Padding(), "the mask Or is not supported"),
        (masks.Causal().at(IDS, IDS), "Causal at positions other than 0, 1, 2... is not supported"),
        (masks.Segments(IDS, IDS) & masks.Segments(IDS, IDS), "two kinds of segments at once are not supported"),
    ],
)
def test_other_masks_have_a_reason(mask, reason):
    assert translate(mask) == reason
    with pytest.raises(ValueError, match=f"splash: {reason}"):
        expect("splash", translate(mask))


def test_segments_and_lengths_become_segments():
    assert segment_ids(Plain(right=0), 2, 3, 3) is None
    plain = Plain(key_lengths=jnp.array([1, 3]), query_ids=IDS, key_ids=IDS)
    query_ids, key_ids = segment_ids(plain, 2, 3, 3)
    seen = query_ids[:, :, None] == key_ids[:, None]
    mask = (masks.Segments(IDS, IDS) & masks.KeyLengths(np.array([1, 3]))).dense(3, 3)[:, 0]
    np.testing.assert_array_equal(seen, mask)


def test_lengths_that_do_not_fit_are_named():
    assert multiple_of(128, T=128, S=256) == []
    assert multiple_of(128, T=0, S=130) == ["lengths must be multiples of 128, got T=0, S=130"]
