"""Anything as a static argument of a jitted function."""

from __future__ import annotations

from typing import Any


class Static:
    """Makes anything a static argument: compared by value where it can be hashed, else by identity."""

    def __init__(self, value: Any):
        self.value = value
        try:
            self._hash = hash(value)
            self._by_value = True
        except TypeError:  # a module that holds a list, a dictionary or an array
            self._hash = id(value)
            self._by_value = False

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or self._hash != other._hash or self._by_value != other._by_value:
            return False
        return self.value == other.value if self._by_value else self.value is other.value
