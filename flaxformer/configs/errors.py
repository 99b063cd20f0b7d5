"""What goes wrong in a configuration, said with the place and with the names that were probably meant."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class ConfigurationError(ValueError):
    """A gin file, a binding or a flag cannot be used; the message says where and what to write instead."""


class Location(NamedTuple):
    """Where a statement stands: a file (or `'bindings'` for those given by hand) and a line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def near_misses(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A sentence part with the names closest to `name`; all of them when there are few and none is close.

    >>> near_misses("DROPUT_RATE", ["DROPOUT_RATE", "NUM_HEADS"])
    'did you mean DROPOUT_RATE?'
    """
    known = sorted(set(known))
    by_lower = {candidate.lower(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(by_lower[match] for match in close)}?"
    if not known:
        return "nothing is known by such a name."
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"known: {listed}."
