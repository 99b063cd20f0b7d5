"""The attention heat map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxformer.demo.g2p.dictionary import Pronunciation
from flaxformer.extras import require


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
    figure_module = require("matplotlib.figure", extra="train")  # without pyplot: no window, no global state
    figure = figure_module.Figure(figsize=(2 + 0.5 * expected[1], 1.4 + 0.42 * expected[0]), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights, cmap="viridis", vmin=0.0, aspect="auto")
    axes.set_xticks(range(expected[1]), [*word, "end"], fontsize=14)
    axes.set_yticks(range(expected[0]), [*pronunciation, "end"], fontsize=14)
    axes.set_xlabel("letters read", fontsize=13)
    axes.set_ylabel("phonemes written", fontsize=13)
    axes.set_title(f"Cross-attention for “{word}”", fontsize=15)
    figure.colorbar(image, ax=axes, label="attention weight, mean over heads")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
