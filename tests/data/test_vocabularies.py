import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxformer.data.vocabularies import ByteVocabulary, SymbolVocabulary


@given(st.text())
def test_bytes_round_trip(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(text)
    assert vocabulary.decode([*ids, vocabulary.eos_id, 77]) == text
    assert all(3 <= index < vocabulary.vocab_size for index in ids)


def test_bytes_have_the_ids_of_byt5():
    vocabulary = ByteVocabulary(extra_ids=125)
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.vocab_size) == (0, 1, 2, 384)
    assert vocabulary.encode("aÿ") == [100, 198, 194]


def test_special_extra_and_broken_bytes_leave_no_trace():
    assert ByteVocabulary(extra_ids=5).decode([0, 100, 2, 198, 101, 260, 1, 100]) == "ab"


@given(st.lists(st.sampled_from(["AA", "B", "K"])))
def test_symbols_round_trip(symbols):
    vocabulary = SymbolVocabulary(("AA", "B", "K"))
    assert vocabulary.decode([0, *vocabulary.encode(symbols), 2, 1, 5]) == symbols


def test_a_string_is_encoded_letter_by_letter():
    assert SymbolVocabulary("abc").encode("cab") == [5, 3, 4]


def test_unknown_symbols_are_refused():
    with pytest.raises(ValueError, match=r"holds the unknown symbol\(s\) \['z'\]; expected symbols out of a b c"):
        SymbolVocabulary("abc").encode("az")


@pytest.mark.parametrize("vocabulary", [SymbolVocabulary("abc"), ByteVocabulary()])
@pytest.mark.parametrize("index", [-1, 400])
def test_unknown_ids_are_refused(vocabulary, index):
    with pytest.raises(ValueError, match=rf"id {index} is unknown; expected 0 to {vocabulary.vocab_size - 1}"):
        vocabulary.decode([index])


@pytest.mark.parametrize("symbols", [(), ("a", "b", "a")])
def test_symbols_are_distinct_and_some(symbols):
    with pytest.raises(ValueError, match="expected at least one symbol, each once"):
        SymbolVocabulary(symbols)
