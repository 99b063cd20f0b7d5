"""Hypothesis strategies for ragged examples."""

import numpy as np
from hypothesis import strategies as st


def sequences(longest: int, vocab_size: int = 20):
    return st.lists(st.integers(1, vocab_size - 1), min_size=1, max_size=longest).map(
        lambda ids: np.array(ids, np.int32)
    )


def examples(longest: int = 6, most: int = 30):
    return st.lists(
        st.fixed_dictionaries({"inputs": sequences(longest), "targets": sequences(longest)}), min_size=1, max_size=most
    )


def as_tuples(rows):
    """Examples as something that can be sorted and compared."""
    return sorted((tuple(e["inputs"].tolist()), tuple(e["targets"].tolist())) for e in rows)
