"""What the demonstration says at its end: rates, sample words, and where the pictures are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flaxformer.demo.g2p.decode import Hypothesis
from flaxformer.demo.g2p.dictionary import Dictionary
from flaxformer.extras import require


def rates(greedy: Any, beam: Any, beam_name: str) -> Any:
    """A table of phoneme and word error rates, from two `evaluate.Score`s."""
    table = require("rich.table", extra="train").Table(title=f"{beam.words:,} held-out words")
    table.add_column("decoding")
    table.add_column("PER", justify="right")
    table.add_column("WER", justify="right")
    for name, score in (("greedy", greedy), (beam_name, beam)):
        table.add_row(name, f"{score.per:.2%}", f"{score.wer:.2%}")
    return table


def samples(words: Sequence[str], hypotheses: Mapping[str, Sequence[Hypothesis]], references: Dictionary) -> Any:
    """A table of words with their hypotheses, best first; those that the dictionary has too are green.

    Args:
      words: to show, in this order.
      hypotheses: of each word.
      references: of each word.
    """
    table = require("rich.table", extra="train").Table(
        title="Held-out words, their best hypotheses and log-probability scores", show_lines=True
    )
    text = require("rich.text", extra="train").Text
    for column in ("word", "model", "dictionary"):
        table.add_column(column, overflow="fold")
    for word in words:
        lines = [
            text(
                f"{hypothesis.score:6.2f}  {' '.join(hypothesis.pronunciation)}",
                style="green" if hypothesis.pronunciation in references[word] else "",
            )
            for hypothesis in hypotheses[word]
        ]
        table.add_row(word, text("\n").join(lines), "\n".join(" ".join(known) for known in references[word]))
    return table
