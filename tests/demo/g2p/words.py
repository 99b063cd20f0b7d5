"""A tiny dictionary, so that tests need no package and no time."""

import itertools

from flaxformer.demo.g2p.dictionary import from_entries

PAIRS = {"a": "AH", "b": "B", "c": "K", "o": "OW", "t": "T"}


def tiny_dictionary():
    """Words of four letters, each letter with a sound of its own; those that begin with `ao` have an alternate."""
    words = ["".join(letters) for letters in itertools.product(PAIRS, repeat=4)]
    entries = [(word, [PAIRS[letter] for letter in word]) for word in words]
    entries += [(f"{word}(2)", ["AO1", *(PAIRS[letter] for letter in word[2:])]) for word in words if word[:2] == "ao"]
    return from_entries(entries)
