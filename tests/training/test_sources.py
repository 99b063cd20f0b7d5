import itertools

import pytest

from flaxformer.training import sources
from tests.training import tiny

LIST = [{"a": 0}, {"a": 1}, {"a": 2}]


class Epochs(tiny.Source):
    def epoch(self):
        return iter(LIST)


def test_a_source_starts_where_it_is_told_to():
    source = tiny.Source()
    first = next(sources.training_batches(source, 7))
    assert source.asked == [7]
    assert (first["encoder_input_tokens"] == tiny.batch(7)["encoder_input_tokens"]).all()


def test_a_list_is_repeated_from_any_step():
    found = [batch["a"] for batch in itertools.islice(sources.training_batches(LIST, 4), 4)]
    assert found == [1, 2, 0, 1]


def test_evaluation_is_one_pass_the_same_each_time():
    for source in (LIST, Epochs()):
        for _ in range(2):
            assert list(sources.evaluation_batches(source)) == LIST
        assert list(sources.evaluation_batches(source, 2)) == LIST[:2]
    assert len(list(sources.evaluation_batches(tiny.Source(), 3))) == 3


@pytest.mark.parametrize(("data", "what"), [(iter(LIST), "of type list_iterator"), ([], "empty")])
def test_what_cannot_go_on_at_any_step_is_refused(data, what):
    with pytest.raises(ValueError, match=rf"the training data is {what}; expected a source with a method batches"):
        sources.training_batches(data)


@pytest.mark.parametrize(
    ("data", "what"), [(iter(LIST), "of type list_iterator"), ([], "empty"), (tiny.Source(), "of type Source")]
)
def test_evaluation_without_an_end_or_a_second_time_is_refused(data, what):
    with pytest.raises(ValueError, match=rf"the evaluation data is {what} and eval_batches is None; expected"):
        sources.evaluation_batches(data)
