import sys
import types

import pytest

from flaxformer.t5x import vocabularies


def test_special_ids_are_known_without_seqio_and_the_rest_is_seqios(monkeypatch):
    vocabulary = vocabularies.SentencePieceVocabulary("a/model", extra_ids=100)
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    seqio = types.ModuleType("seqio")
    vars(seqio)["SentencePieceVocabulary"] = lambda path, extra_ids: types.SimpleNamespace(made=(path, extra_ids))
    monkeypatch.setitem(sys.modules, "seqio", seqio)
    assert vocabulary.made == ("a/model", 100)
    with pytest.raises(AttributeError):
        _ = vocabulary._nothing
