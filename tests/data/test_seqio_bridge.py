"""The bridge against real seqio; skipped where seqio is not installed, which is why it is marked `extras`."""

import functools
import itertools
import sys

import numpy as np
import pytest

from flaxformer.data.batching import Batches, Bucket
from flaxformer.data.features import DecoderOnlyFeatures, EncoderDecoderFeatures
from flaxformer.data.seqio_bridge import SeqioBatches
from flaxformer.data.vocabularies import ByteVocabulary
from tests.data.examples import as_tuples

LENGTHS = {"inputs": 16, "targets": 8}
WORDS = [f"{'word' * (1 + n % 3)} {n}" for n in range(21)]


def test_without_seqio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)
    source = SeqioBatches("any", LENGTHS, EncoderDecoderFeatures(), Bucket((16, 8), 2))
    with pytest.raises(ImportError, match=r"flaxformer\[seqio\]"):
        next(source.examples())


def test_negative_start_steps_are_refused():
    source = SeqioBatches("any", LENGTHS, EncoderDecoderFeatures(), Bucket((16, 8), 2))
    with pytest.raises(ValueError, match="start_step is -1; expected 0 or more"):
        source.batches(-1)


@pytest.fixture(scope="module")
def task():
    """A task made here: words in, their first letters out, tokenized as bytes by seqio."""
    seqio = pytest.importorskip("seqio")
    tf = pytest.importorskip("tensorflow")

    def generate(split, shuffle_files, seed=None):
        del shuffle_files, seed
        texts = WORDS if split == "train" else []
        return tf.data.Dataset.from_generator(
            lambda: ({"inputs": text, "targets": text[:5]} for text in texts),
            output_signature={key: tf.TensorSpec((), tf.string) for key in LENGTHS},
        )

    source = seqio.FunctionDataSource(
        generate, splits=["train", "empty"], num_input_examples={"train": len(WORDS), "empty": 0}
    )
    vocabulary = seqio.ByteVocabulary()
    return seqio.Task(
        "flaxformer_bridge_test",
        source=source,
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features={key: seqio.Feature(vocabulary, add_eos=True) for key in LENGTHS},
    )


def expected_examples():
    encode = ByteVocabulary().encode
    return [
        {"inputs": np.array(encode(text)[:15] + [1]), "targets": np.array(encode(text[:5])[:7] + [1])} for text in WORDS
    ]


def source_of(task, **overrides):
    options = {"converter": EncoderDecoderFeatures(), "bucket": Bucket((16, 8), 4)} | overrides
    return SeqioBatches(task, LENGTHS, **options)


def assert_equal_batches(ours, theirs):
    for one, other in itertools.zip_longest(ours, theirs):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.extras
def test_examples_are_those_of_our_own_byte_vocabulary(task):
    assert as_tuples(source_of(task).examples()) == as_tuples(expected_examples())


@pytest.mark.extras
def test_an_epoch_equals_batches_from_memory(task):
    memory = Batches(expected_examples(), EncoderDecoderFeatures(), [Bucket((16, 8), 4)], shuffle=False)
    assert_equal_batches(source_of(task, shuffle=False).epoch(), memory.epoch())


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["encoder-decoder", "prefix-lm"])
def test_features_equal_those_of_seqio_converters(task, kind):
    seqio = pytest.importorskip("seqio")
    theirs, ours, bucket = {
        "encoder-decoder": (seqio.EncDecFeatureConverter, EncoderDecoderFeatures(), Bucket((16, 8), 1)),
        "prefix-lm": (seqio.PrefixLMFeatureConverter, DecoderOnlyFeatures(), Bucket((24,), 1)),
    }[kind]
    dataset = theirs(pack=False)(task.get_dataset(LENGTHS, "train", shuffle=False), task_feature_lengths=LENGTHS)
    batches = list(source_of(task, converter=ours, bucket=bucket, shuffle=False).epoch())
    for one, other in zip(batches, dataset.as_numpy_iterator(), strict=True):
        assert set(one) <= set(other)
        for name in one:
            np.testing.assert_array_equal(one[name][0], other[name], err_msg=name)


@pytest.mark.extras
def test_packed_rows_equal_those_of_seqio_packing_one_row_at_a_time(task):
    seqio = pytest.importorskip("seqio")
    converter = seqio.EncDecFeatureConverter(pack=True)
    dataset = task.get_dataset(LENGTHS, "train", shuffle=False)
    theirs = [dict(row) for row in converter(dataset, {"inputs": 40, "targets": 24}).as_numpy_iterator()]
    ours = list(source_of(task, bucket=Bucket((40, 24), 1), packed=True, open_rows=1, shuffle=False).epoch())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name][0], other[name], err_msg=name)


@pytest.mark.extras
@pytest.mark.parametrize("packed", [False, True])
def test_starting_at_a_step_equals_skipping_to_it(task, packed):
    make = functools.partial(source_of, task, packed=packed, seed=3)
    skipped = list(itertools.islice(make().batches(), 9))
    assert_equal_batches(itertools.islice(make().batches(5), 4), skipped[5:])
    assert any((one["encoder_input_tokens"] != skipped[0]["encoder_input_tokens"]).any() for one in skipped[1:])


@pytest.mark.extras
def test_a_mixture_is_read_by_its_name(task):
    seqio = pytest.importorskip("seqio")
    seqio.TaskRegistry.add_provider(task.name, task)
    seqio.MixtureRegistry.add("flaxformer_bridge_mixture", [(task.name, 1.0)])
    drawn = as_tuples(itertools.islice(source_of("flaxformer_bridge_mixture").examples(num_epochs=None), 60))
    assert len(drawn) == 60 and set(drawn) <= set(as_tuples(expected_examples()))


@pytest.mark.extras
def test_unknown_names_are_refused(task):
    with pytest.raises(ValueError, match="task is 'no_such_task'; expected the name of a registered task or mixture"):
        next(source_of("no_such_task").examples())


@pytest.mark.extras
def test_unknown_splits_are_refused(task):
    with pytest.raises(ValueError, match=r"split is 'test'; expected one of \['empty', 'train'\]"):
        next(source_of(task, split="test").examples())


@pytest.mark.extras
def test_empty_splits_are_refused(task):
    with pytest.raises(ValueError, match="split 'empty' of .* is empty, .* expected endless examples"):
        next(source_of(task, split="empty").batches())
