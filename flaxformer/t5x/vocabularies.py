"""seqio's vocabularies, read when they are first used: models can be built and trained without seqio and its files."""

from __future__ import annotations

import functools
from typing import Any

from flaxformer.data.vocabularies import EOS_ID, PAD_ID, UNKNOWN_ID, ByteVocabulary
from flaxformer.extras import require

__all__ = ["ByteVocabulary", "SentencePieceVocabulary"]


class SentencePieceVocabulary:
    """seqio's `SentencePieceVocabulary`, of which T5's special ids are known without it.

    Args:
      sentencepiece_model_file: a path that seqio can read.
      **options: of seqio's class, for example `extra_ids`.

    >>> SentencePieceVocabulary("gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model").eos_id
    1
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNKNOWN_ID

    def __init__(self, sentencepiece_model_file: str, **options: Any):
        self.sentencepiece_model_file = sentencepiece_model_file
        self._options = options

    @functools.cached_property
    def wrapped(self) -> Any:
        """seqio's object. Needs `pip install 'flaxformer[seqio]'`."""
        seqio = require("seqio", extra="seqio")
        return seqio.SentencePieceVocabulary(self.sentencepiece_model_file, **self._options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.wrapped, name)
