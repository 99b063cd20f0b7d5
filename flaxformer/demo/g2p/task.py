"""The task as a model sees it: spellings and pronunciations as ids, and the batches made of them.

Letters and phonemes share one vocabulary (letters are lower case, phonemes upper case), so that the stock
encoder-decoder with one embedding table fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from flaxformer.data.batching import Batches, Bucket, Packed, Padded, token_buckets
from flaxformer.data.features import EncoderDecoderFeatures, Example
from flaxformer.data.vocabularies import SymbolVocabulary
from flaxformer.demo.g2p import dictionary as dictionaries
from flaxformer.demo.g2p.dictionary import LETTERS, PHONEMES, Dictionary, Pronunciation

VOCABULARY = SymbolVocabulary(LETTERS + PHONEMES)
LONGEST = 30  # letters or phonemes with the end of sequence; the dictionary's longest word has 28 letters


def spell(word: str, length: int | None = None) -> Int[np.ndarray, " S"]:
    """The encoder tokens of a word: its letters and the end of sequence, padded to `length` if given.

    Raises:
      ValueError: for letters that the task does not know, and for words too long.
    """
    ids = np.array([*VOCABULARY.encode(word), VOCABULARY.eos_id], np.int32)
    if length is None:
        return ids
    if ids.size > length:
        raise ValueError(
            f"{word!r} takes {ids.size} tokens with its end; expected at most {length}. Use a shorter word."
        )
    return np.pad(ids, (0, length - ids.size))


def example(word: str, pronunciation: Pronunciation) -> Example:
    """One training example."""
    targets = np.array([*VOCABULARY.encode(pronunciation), VOCABULARY.eos_id], np.int32)
    return {"inputs": spell(word), "targets": targets}


def examples(dictionary: Dictionary) -> list[Example]:
    """One example per pronunciation of each word."""
    return [example(word, known) for word, references in dictionary.items() for known in references]


def training_batches(
    dictionary: Dictionary | None = None, lengths: Sequence[int] = (32, 30), rows: int = 64, seed: int = 0
) -> Batches:
    """Endless packed batches of the training split: one shape, hence one compilation, and hardly any padding.

    Args:
      dictionary: the whole dictionary; None loads it.
      lengths: letters and phonemes per row.
      rows: per batch.
      seed: of the shuffling.
    """
    train = dictionaries.take_split(dictionary or dictionaries.load(), "train")
    converter = EncoderDecoderFeatures(vocab_size=VOCABULARY.vocab_size)
    return Batches(examples(train), converter, [Bucket(tuple(lengths), rows)], Packed(), seed=seed)


def validation_batches(
    dictionary: Dictionary | None = None,
    lengths: Iterable[Sequence[int]] = ((12, 12), (LONGEST, LONGEST)),
    tokens: int = 4096,
) -> Batches:
    """One pass over the validation split, in a fixed order, padded in length buckets."""
    validation = dictionaries.take_split(dictionary or dictionaries.load(), "validation")
    converter = EncoderDecoderFeatures(vocab_size=VOCABULARY.vocab_size)
    return Batches(examples(validation), converter, token_buckets(list(lengths), tokens), Padded(), shuffle=False)
