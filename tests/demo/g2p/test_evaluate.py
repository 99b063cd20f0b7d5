import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxformer.demo.g2p.evaluate import edit_distance, score

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@given(WORDS, WORDS)
def test_distance_is_symmetric_and_zero_only_for_equals(one, other):
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one)
    assert (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))


@given(WORDS, WORDS, WORDS)
def test_distance_obeys_the_triangle(one, other, third):
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)


@given(WORDS, st.data())
def test_one_edit_is_at_distance_one(word, data):
    place = data.draw(st.integers(0, len(word)))
    assert edit_distance(word, word[:place] + ["x"] + word[place:]) == 1
    if place < len(word):
        assert edit_distance(word, word[:place] + ["x"] + word[place + 1 :]) == 1


def test_the_nearest_reference_counts():
    result = score(["kat"], [["dogs", "cat", "kats"]])
    assert (result.wrong, result.errors, result.phonemes) == (1, 1, 4), "among equally near ones the longest"
    assert score(["kat"], [["dogs", "kat"]]).wer == 0


def test_rates_are_sums_over_the_corpus():
    result = score(["abc", "", "xyzw"], [["abd"], ["ab"], ["xyzw", "q"]])
    assert result.wer == pytest.approx(2 / 3)
    assert result.per == pytest.approx((1 + 2 + 0) / (3 + 2 + 4))


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], [["a"], ["b"]])])
def test_one_hypothesis_per_word_is_expected(hypotheses, references):
    with pytest.raises(ValueError, match=r"there are \d hypotheses for \d words; expected one per word"):
        score(hypotheses, references)


@pytest.mark.parametrize("known", [[], ["a", ""]])
def test_words_without_reference_are_refused(known):
    with pytest.raises(ValueError, match="a word has no reference, or an empty one"):
        score(["a"], [known])
