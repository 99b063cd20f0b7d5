import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.data.batching import Batches, Bucket, Packed, Padded, token_buckets
from flaxformer.data.features import DecoderOnlyFeatures, EncoderDecoderFeatures
from tests.data.examples import examples

BUCKETS = (Bucket((2, 3), 4), Bucket((4, 4), 3), Bucket((6, 6), 2))
SOURCES = {
    "buckets": lambda data, **kw: Batches(data, EncoderDecoderFeatures(), BUCKETS, **kw),
    "packed": lambda data, **kw: Batches(data, EncoderDecoderFeatures(), [Bucket((9, 8), 2)], Packed(4), **kw),
    "decoder-only": lambda data, **kw: Batches(data, DecoderOnlyFeatures(), [Bucket((15,), 2)], Packed(), **kw),
}
EXAMPLES = [{"inputs": np.arange(1, 2 + n % 6), "targets": np.full(1 + n % 5, 1 + n % 7, np.int32)} for n in range(23)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@settings(max_examples=25, deadline=None)
@given(data=examples(), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_epoch_holds_each_example_once(make, data, seed, epoch):
    source = make(data, seed=seed)
    plan = source.plan(epoch)
    assert len(plan) == source.steps_per_epoch
    indices = [index for planned in plan for row in planned.rows for index in row]
    assert sorted(indices) == list(range(len(data)))


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@settings(max_examples=10, deadline=None)
@given(data=examples(most=12), start=st.integers(0, 12))
def test_starting_at_a_step_equals_skipping_to_it(make, data, start):
    resumed = make(data).batches(start)
    for expected, batch in zip(itertools.islice(make(data).batches(), start, start + 4), resumed, strict=False):
        assert_equal(expected, batch)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_epochs_and_seeds_differ(make):
    source = make(EXAMPLES)
    assert source.plan(0) == make(EXAMPLES).plan(0)
    assert source.plan(0) != source.plan(1)
    assert source.plan(0) != make(EXAMPLES, seed=1).plan(0)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_shapes_are_those_of_the_buckets(make):
    source = make(EXAMPLES)
    shapes = {batch["decoder_input_tokens"].shape for batch in source.epoch()}
    assert shapes == {(bucket.rows, bucket.lengths[-1]) for bucket in source.buckets}


def test_padding_a_batch_with_empty_rows_adds_no_weight():
    source = SOURCES["buckets"](EXAMPLES)
    weight = sum(batch["decoder_loss_weights"].sum() for batch in source.epoch())
    assert weight == sum(len(example["targets"]) for example in EXAMPLES)


def test_without_shuffling_examples_keep_their_order():
    source = SOURCES["buckets"](EXAMPLES, shuffle=False)
    assert source.plan(0) == source.plan(5)
    by_bucket = collections.defaultdict(list)
    for planned in source.plan():
        by_bucket[planned.bucket] += [row[0] for row in planned.rows]
    assert [sorted(found) for found in by_bucket.values()] == list(by_bucket.values())


def test_a_batch_is_filled_before_the_next_begins():
    rows = [len(planned.rows) for planned in SOURCES["packed"](EXAMPLES, shuffle=False).plan()]
    assert rows[:-1] == [2] * (len(rows) - 1)


def test_trimming_is_asked_for():
    long = [{"inputs": np.arange(1, 12), "targets": np.arange(1, 9)}]
    with pytest.raises(ValueError, match=r"1 example\(s\) fit no bucket, the first is number 0 of sizes \(11, 8\)"):
        Batches(long, EncoderDecoderFeatures(), BUCKETS).plan()
    (batch,) = Batches(long, EncoderDecoderFeatures(), BUCKETS, trim=True).epoch()
    assert batch["encoder_input_tokens"][0].tolist() == [1, 2, 3, 4, 5, 6]


def test_packing_takes_one_bucket():
    with pytest.raises(ValueError, match="packing got 3 buckets; expected one"):
        Batches(EXAMPLES, EncoderDecoderFeatures(), BUCKETS, Packed()).plan()


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="there are no examples; expected at least one"):
        Batches([], EncoderDecoderFeatures(), BUCKETS, Padded())


@pytest.mark.parametrize("buckets", [(), (Bucket((4, 4), 0),)])
def test_buckets_without_rows_are_refused(buckets):
    with pytest.raises(ValueError, match="expected at least one, each with at least one row"):
        Batches(EXAMPLES, EncoderDecoderFeatures(), buckets)


def test_negative_start_steps_are_refused():
    with pytest.raises(ValueError, match="start_step is -1; expected 0 or more"):
        SOURCES["buckets"](EXAMPLES).batches(-1)


def test_a_budget_below_one_batch_is_refused():
    with pytest.raises(ValueError, match=r"a budget of 100 tokens holds fewer than 8 rows of lengths \(8, 8\)"):
        token_buckets([(8, 8)], tokens=100)


def test_budgeted_batches_hold_about_the_same_number_of_tokens():
    buckets = token_buckets([(8, 6), (12, 10), (30, 30)], tokens=4096, multiple=4)
    assert all(4096 * 0.9 < bucket.rows * sum(bucket.lengths) <= 4096 for bucket in buckets)
