"""ValueErrors that also answer to the type google/flaxformer raised in the same place.

Everything this library refuses is a `ValueError`. Where existing code may catch another type, the error is both.
"""


class UnknownNameError(ValueError, KeyError):
    """A name that was not declared."""

    __str__ = Exception.__str__  # KeyError would print the message quoted


class WrongTypeError(ValueError, TypeError):
    """An object of the wrong type."""


class BrokenExpectationError(ValueError, AssertionError):
    """Something that calling code relies on does not hold."""


class UnsupportedError(ValueError, NotImplementedError):
    """A request this library declines."""
