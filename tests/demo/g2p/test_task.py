import itertools

import numpy as np
import pytest

from flaxformer.demo.g2p.dictionary import split_of
from flaxformer.demo.g2p.task import VOCABULARY, example, examples, spell, training_batches, validation_batches
from tests.demo.g2p.words import tiny_dictionary


def read(batch):
    """The (word, pronunciation) pairs of a batch, by segment if it is packed."""
    for row in range(len(batch["encoder_input_tokens"])):
        letters, phonemes = (batch[name][row] for name in ("encoder_input_tokens", "decoder_target_tokens"))
        segments = batch["encoder_segment_ids"][row] if "encoder_segment_ids" in batch else np.sign(letters)
        others = batch["decoder_segment_ids"][row] if "decoder_segment_ids" in batch else np.sign(phonemes)
        for segment in range(1, segments.max() + 1):
            word = "".join(VOCABULARY.decode(letters[segments == segment]))
            yield word, tuple(VOCABULARY.decode(phonemes[others == segment]))


def pairs(dictionary, split):
    return sorted(
        (word, known) for word, references in dictionary.items() if split_of(word) == split for known in references
    )


def test_letters_and_phonemes_share_a_vocabulary():
    assert VOCABULARY.vocab_size == 3 + 27 + 39
    assert VOCABULARY.decode(VOCABULARY.encode("it's")) == list("it's")


def test_an_example_ends_both_of_its_sequences():
    pair = example("cat", ("K", "AE", "T"))
    assert all(ids[-1] == VOCABULARY.eos_id and len(ids) == 4 for ids in pair.values())


def test_training_packs_every_training_pair_once_per_epoch():
    source = training_batches(tiny_dictionary(), lengths=(10, 9), rows=3)
    batches = list(itertools.islice(source.batches(), source.steps_per_epoch))
    assert sorted(pair for batch in batches for pair in read(batch)) == pairs(tiny_dictionary(), "train")
    assert {batch["encoder_input_tokens"].shape for batch in batches} == {(3, 10)}


def test_validation_reads_every_validation_pair_once():
    source = validation_batches(tiny_dictionary(), tokens=480)
    expected = pairs(tiny_dictionary(), "validation")
    assert expected and sorted(pair for batch in source.epoch() for pair in read(batch)) == expected


def test_words_have_one_example_per_pronunciation():
    assert len(examples({"live": (("L", "AY", "V"), ("L", "IH", "V")), "a": (("AH",),)})) == 3


def test_spelling_pads():
    assert spell("b", 4).tolist() == [*VOCABULARY.encode("b"), 1, 0, 0]


def test_words_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'abc' takes 4 tokens with its end; expected at most 3"):
        spell("abc", 3)


def test_unknown_letters_are_refused():
    with pytest.raises(ValueError, match=r"unknown symbol\(s\) \['É'\]"):
        spell("caféÉ".replace("é", "e"))
