import pytest

from flaxformer.retired import RETIRED, RetiredError, refuse_retired


class Owner:
    pass


@pytest.mark.parametrize("name", RETIRED)
@pytest.mark.parametrize("harmless", [None, False])
def test_value_that_asks_for_nothing_is_accepted(name, harmless):
    assert refuse_retired(Owner(), **{name: harmless}) is None


@pytest.mark.parametrize("name", RETIRED)
def test_other_value_is_refused_with_what_to_write_now(name):
    with pytest.raises(RetiredError, match=rf"{name}=8 was given to Owner.*expected it unset.*remove the binding") as e:
        refuse_retired(Owner(), **{name: 8})
    assert RETIRED[name] in str(e.value)


def test_refusal_is_both_kinds_of_error_that_callers_catch():
    assert issubclass(RetiredError, ValueError)
    assert issubclass(RetiredError, NotImplementedError)
