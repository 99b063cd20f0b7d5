import pytest

from flaxformer import errors


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (errors.WrongTypeError, TypeError),
        (errors.UnknownAttributeError, AttributeError),
        (errors.UnknownNameError, KeyError),
        (errors.BrokenExpectationError, AssertionError),
        (errors.UnsupportedError, NotImplementedError),
    ],
)
def test_every_error_is_a_value_error_and_what_was_raised_before(error, also):
    assert issubclass(error, ValueError) and issubclass(error, also)
    assert str(error("a 'quoted' message")) == "a 'quoted' message"
