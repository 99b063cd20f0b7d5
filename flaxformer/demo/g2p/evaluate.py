"""Phoneme and word error rates.

A word counts as right if its hypothesis equals any of its references. Its phoneme errors are the least edit distance
to a reference; the rate divides by the length of the reference that attains it (the longest such, if several do):

    WER = share of words without an exact match        PER = sum of least distances / sum of those lengths
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors over a set of words.

    Attributes:
      words: how many words were scored.
      wrong: words whose hypothesis equals no reference.
      errors: sum of least edit distances.
      phonemes: sum of the lengths of the references that attain them.
    """

    words: int
    wrong: int
    errors: int
    phonemes: int

    @property
    def per(self) -> float:
        """Phoneme error rate, 0 to 1 (above 1 for hypotheses much too long)."""
        return self.errors / self.phonemes

    @property
    def wer(self) -> float:
        """Word error rate, 0 to 1."""
        return self.wrong / self.words


def score(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Sequence[Hashable]]]) -> Score:
    """Scores one hypothesis per word.

    >>> result = score([("K", "AE", "T"), ("D",)], [[("K", "AE", "T"), ("K", "AH", "T")], [("D", "AO", "G")]])
    >>> result.wer, result.per
    (0.5, 0.3333333333333333)

    Args:
      hypotheses: one pronunciation per word.
      references: all pronunciations per word.

    Raises:
      ValueError: without words, for unequal numbers of them, and for a word without a reference.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"there are {len(hypotheses)} hypotheses for {len(references)} words; expected one per word, and a word."
        )
    if not all(len(known) and all(map(len, known)) for known in references):
        raise ValueError("a word has no reference, or an empty one; expected at least one phoneme to compare with.")
    wrong = errors = phonemes = 0
    for hypothesis, known in zip(hypotheses, references, strict=True):
        distance, length = min((edit_distance(hypothesis, each), -len(each)) for each in known)
        wrong += distance > 0
        errors += distance
        phonemes -= length
    return Score(len(references), wrong, errors, phonemes)


def edit_distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The least number of insertions, deletions and substitutions that turn `one` into `other`.

    >>> edit_distance("kitten", "sitting")
    3

    Source: Levenshtein (1966); the two-row dynamic programme of Wagner and Fischer (1974).
    """
    one, other = tuple(one), tuple(other)
    if one == other:
        return 0
    above = range(len(other) + 1)
    for row, left in enumerate(one, start=1):
        current = [row]
        for column, right in enumerate(other):
            changed = above[column] + (left != right)
            current.append(min(changed, above[column + 1] + 1, current[column] + 1))
        above = current
    return above[-1]
