"""The attention heat map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxformer.demo.g2p.dictionary import Pronunciation
from flaxformer.visualize import heat_map


def attention_heat_map(
    path: str | os.PathLike[str], word: str, pronunciation: Pronunciation, weights: Float[np.ndarray, "T S"]
) -> Path:
    """Draws cross-attention weights as a picture: letters from left to right, phonemes from top to bottom.

    Args:
      path: of the PNG; its folder is made.
      word: S - 1 letters.
      pronunciation: T - 1 phonemes.
      weights: `[T S]`, rows sum to one; the last row and column are the ends of sequence.

    Returns:
      The path.

    Raises:
      ValueError: when the weights do not have the shape of the word and its pronunciation.
    """
    expected = (len(pronunciation) + 1, len(word) + 1)
    if weights.shape != expected:
        raise ValueError(
            f"weights has shape {weights.shape}; expected {expected} for {len(pronunciation)} phonemes and "
            f"{len(word)} letters, each with an end of sequence."
        )
    figure = heat_map(
        weights,
        [*pronunciation, "end"],
        [*word, "end"],
        title=f"Cross-attention for “{word}”, mean over heads",
        query_name="phonemes written",
        key_name="letters read",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
