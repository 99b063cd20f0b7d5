"""What a caller tells the parts of a model while they are traced, past all that lies between."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

Value = TypeVar("Value")


@contextlib.contextmanager
def told(variable: contextvars.ContextVar[Value], value: Value) -> Iterator[Value]:
    """`variable` has this value inside of the block, and its old one behind it, whatever happens.

    >>> word = contextvars.ContextVar("word", default=1)
    >>> with told(word, 2):
    ...     print(word.get())
    2
    >>> word.get()
    1
    """
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
