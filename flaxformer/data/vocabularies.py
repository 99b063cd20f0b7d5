"""Vocabularies that need no file: bytes, as ByT5 uses them, and a short list of symbols.

Ids 0, 1 and 2 are padding, end of sequence and unknown in both, as in T5's vocabularies. `encode` adds no end of
sequence: append `eos_id` where an example wants one. `decode` reads up to the first end of sequence and skips padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsInt

PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
_SPECIAL_IDS = 3


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes, shifted by the three special ids.

    >>> vocabulary = ByteVocabulary(extra_ids=125)
    >>> vocabulary.encode("hé"), vocabulary.decode([107, 198, 172, 1, 99]), vocabulary.vocab_size
    ([107, 198, 172], 'hé', 384)

    Attributes:
      extra_ids: further ids at the end, for example for span corruption; they stand for no text.

    Source: ByT5 (Xue et al., 2022), section 3.
    """

    extra_ids: int = 0
    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNKNOWN_ID

    @property
    def vocab_size(self) -> int:
        """Special ids, 256 bytes and extra ids; a model's table may be larger."""
        return _SPECIAL_IDS + 256 + self.extra_ids

    def encode(self, text: str) -> list[int]:
        """One id per byte of the UTF-8 form of `text`."""
        return [byte + _SPECIAL_IDS for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; special and extra ids, and bytes that are no UTF-8, leave no trace.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        shifted = (index - _SPECIAL_IDS for index in _until_eos(ids, self.vocab_size))
        return bytes(byte for byte in shifted if 0 <= byte < 256).decode("utf-8", errors="ignore")


@dataclasses.dataclass(frozen=True)
class SymbolVocabulary:
    """A fixed list of symbols, such as letters or phonemes.

    >>> vocabulary = SymbolVocabulary(("AA", "B", "K"))
    >>> vocabulary.encode(["B", "AA", "K"]), vocabulary.decode([4, 3, 5, 1, 0]), vocabulary.vocab_size
    ([4, 3, 5], ['B', 'AA', 'K'], 6)

    Attributes:
      symbols: the first gets id 3.
    """

    symbols: Sequence[str]
    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNKNOWN_ID

    def __post_init__(self) -> None:
        repeated = sorted({symbol for symbol in self.symbols if list(self.symbols).count(symbol) > 1})
        if repeated or not self.symbols:
            raise ValueError(
                f"symbols has {len(self.symbols)} entries, of which {repeated} come more than once; expected at least "
                "one symbol, each once."
            )

    @property
    def vocab_size(self) -> int:
        """Special ids and symbols."""
        return _SPECIAL_IDS + len(self.symbols)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols, start=_SPECIAL_IDS)}

    def encode(self, symbols: Iterable[str]) -> list[int]:
        """One id per symbol; a string is read letter by letter.

        Raises:
          ValueError: for a symbol that is not in the list.
        """
        symbols = list(symbols)
        unknown = [symbol for symbol in symbols if symbol not in self._ids]
        if unknown:
            raise ValueError(
                f"{symbols} holds the unknown symbol(s) {unknown}; expected symbols out of {' '.join(self.symbols)}."
            )
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, ids: Iterable[SupportsInt]) -> list[str]:
        """The symbols of `ids`; padding and unknown ids leave no trace.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        kept = _until_eos(ids, self.vocab_size)
        return [self.symbols[index - _SPECIAL_IDS] for index in kept if index >= _SPECIAL_IDS]


def _until_eos(ids: Iterable[SupportsInt], vocab_size: int) -> Iterator[int]:
    for index in map(int, ids):
        if not 0 <= index < vocab_size:
            raise ValueError(f"id {index} is unknown; expected 0 to {vocab_size - 1}. Was another vocabulary used?")
        if index == EOS_ID:
            return
        yield index
