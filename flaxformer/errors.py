"""Errors that are ValueErrors and also what google/flaxformer raised, so that existing `except` clauses keep working.

Everything this library refuses is a `ValueError`; where existing code may catch another type, the error is both.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def shapes_refused(advice: str) -> Iterator[None]:
    """Turns what a chex assertion inside finds into a `ShapeError` that ends with `advice`."""
    try:
        yield
    except AssertionError as error:
        raise ShapeError(f"{error} {advice}") from None


class ShapeError(ValueError, AssertionError):
    """Arrays whose ranks or sizes do not fit each other."""


class PartError(ValueError, TypeError):
    """A part of a kind that cannot stand where it was put."""


class WrongTypeError(ValueError, TypeError):
    """An object of the wrong type."""


class UnknownAttributeError(ValueError, AttributeError):
    """A name that a module does not have."""


class UnknownNameError(ValueError, KeyError):
    """A name that was not declared."""

    __str__ = Exception.__str__  # KeyError would print the message quoted


class BrokenExpectationError(ValueError, AssertionError):
    """Something that the calling code relies on does not hold."""


class UnsupportedError(ValueError, NotImplementedError):
    """A request that this library declines."""
