import numpy as np
import pytest

from benchmarks.attention.workload import Workload
from flaxformer.components.attention import masks

LENGTH = 12


@pytest.mark.parametrize("mask", ["none", "causal", "window:5", "window:99", "segments:3", "segments:99"])
@pytest.mark.parametrize("program", ["forward", "decode"])
def test_as_many_pairs_are_counted_as_the_mask_shows(mask, program):
    workload = Workload(program, LENGTH, mask=mask)
    made = workload.make_mask(workload.arrays())
    if made is None:
        seen = np.full(workload.queries, LENGTH)
    else:
        seen = np.asarray(made.dense(workload.queries, LENGTH)).sum(-1).ravel()
    np.testing.assert_array_equal(workload.visible(), seen)


def test_a_window_counts_its_own_position():
    assert list(Workload(length=5, mask="window:3").visible()) == [1, 2, 3, 3, 3]


def test_segments_are_uneven_and_all_there():
    ids = Workload(length=64, mask="segments:4").arrays()["segments"][0]
    sizes = np.bincount(ids)
    assert len(sizes) == 4 and len(set(sizes)) > 1 and all(np.diff(ids) >= 0)


def test_operations_follow_the_stated_convention():
    causal = Workload("forward", 8, batch=2, heads=4, kv_heads=2, head_dim=16)
    assert causal.flops() == 4 * 2 * 4 * 16 * (8 * 9 // 2)
    assert Workload("backward", 8, batch=2, heads=4, kv_heads=2, head_dim=16).flops() == 3.5 * causal.flops()
    assert Workload("decode", 8, heads=1, head_dim=16).flops() == 4 * 16 * 8


def test_only_what_differs_from_the_defaults_is_named():
    assert Workload("decode", 16, kv_heads=1, mask="window:4").name == "decode-16-kv_heads=1-mask=window:4"


def test_values_can_be_held_by_the_dtype():
    query = Workload(length=4, dtype="bfloat16").arrays()["query"]
    assert query.dtype == np.float32
    np.testing.assert_array_equal(query, query.astype("bfloat16").astype(np.float32))


def test_heads_and_lengths_of_the_arrays():
    arrays = Workload("decode", 6, batch=2, heads=4, kv_heads=1, head_dim=8, bias="array").arrays()
    assert arrays["query"].shape == arrays["cotangent"].shape == (2, 1, 4, 8)
    assert arrays["key"].shape == arrays["value"].shape == (2, 6, 1, 8)
    assert arrays["bias"].shape == (1, 4, 1, 6)
    assert arrays["tokens"].shape == (2, 6, 32)


def test_a_table_has_directions_only_without_a_causal_mask():
    for mask, bidirectional in (("none", True), ("causal", False)):
        workload = Workload(length=4, mask=mask, bias="t5")
        assert workload.make_bias(workload.arrays()).bidirectional is bidirectional


def test_a_window_is_one_symbolic_mask():
    workload = Workload(length=8, mask="window:3")
    assert workload.make_mask(workload.arrays()) == masks.Causal(left=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"program": "train"}, "program is 'train'; expected one of forward, backward, decode"),
        ({"bias": "rotary"}, "bias is 'rotary'; expected one of none, t5"),
        ({"length": 0}, "sizes are .*length=0.*expected at least 1 of each"),
        ({"kv_heads": 0}, "expected at least 1 of each"),
        ({"kv_heads": 3}, "heads is 8 and kv_heads 3; expected a multiple of kv_heads"),
        ({"mask": "window"}, "mask is 'window'; expected one of .*for example window:512"),
        ({"mask": "window:-1"}, "mask is 'window:-1'; expected one of"),
        ({"mask": "causal:2"}, "mask is 'causal:2'; expected one of"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Workload(**settings)
