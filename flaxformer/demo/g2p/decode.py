"""Pronouncing words with a trained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer import decoding
from flaxformer.data.features import EncoderDecoderFeatures
from flaxformer.demo.g2p.dictionary import Pronunciation
from flaxformer.demo.g2p.task import LONGEST, VOCABULARY, example, spell


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One pronunciation that a model proposes.

    Attributes:
      pronunciation: its phonemes.
      score: the strategy's score; higher is better.
    """

    pronunciation: Pronunciation
    score: float


def pronounce(
    model: Any, variables: Mapping[str, Any], words: Sequence[str], strategy: Any, rows: int = 256
) -> list[list[Hypothesis]]:
    """The hypotheses for each word, best first.

    Words are decoded in order of length: all batches share one shape and so one compilation, and a batch of short words
    ends its decoding loop early.

    Args:
      model: an encoder-decoder over the task's vocabulary.
      variables: with the collection `params`.
      words: of letters and apostrophes.
      strategy: see `flaxformer.decoding.generate`.
      rows: words per batch.

    Raises:
      ValueError: without words, and for words that the task cannot spell.
    """
    if not words:
        raise ValueError("there are no words to pronounce; expected at least one.")
    order = sorted(range(len(words)), key=lambda index: (len(words[index]), words[index]))
    rows = min(rows, len(words))
    found: list[list[Hypothesis]] = [[] for _ in words]
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        inputs = np.stack([spell(words[index], LONGEST) for index in part])
        inputs = np.pad(inputs, ((0, rows - len(part)), (0, 0)), mode="edge")  # the last word again, dropped below
        tokens, scores, _ = decoding.generate(
            model, variables, jnp.asarray(inputs), strategy=strategy, max_new_tokens=LONGEST, eos_id=VOCABULARY.eos_id
        )
        for index, some, their in zip(part, np.asarray(tokens), np.asarray(scores), strict=False):
            found[index] = [
                Hypothesis(tuple(VOCABULARY.decode(ids)), float(score)) for ids, score in zip(some, their, strict=True)
            ]
    return found


def cross_attention(model: Any, variables: Mapping[str, Any], word: str, pronunciation: Pronunciation) -> np.ndarray:
    """How much each phoneme looks at each letter: `[phonemes + 1, letters + 1]`, ends of sequence included.

    The attention weights of the decoder's last layer, averaged over heads, while the model reads `pronunciation` as its
    own output.
    """
    pair = example(word, pronunciation)
    batch = EncoderDecoderFeatures()([[pair]], lengths=(len(pair["inputs"]), len(pair["targets"])))
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")

    def apply(variables: Mapping[str, Any], *tokens: jax.Array) -> Any:
        return model.apply(variables, *tokens, enable_dropout=False, mutable=["attention"])[1]

    sown = jax.jit(apply)({"params": variables["params"]}, *(batch[name] for name in names))
    layers = sown["attention"]["decoder"]
    last = max((name for name in layers if name.startswith("layers_")), key=lambda name: int(name.split("_")[1]))
    (weights,) = layers[last]["encoder_decoder_attention"]["weights"]  # [1 N T S]
    return np.asarray(weights[0].mean(axis=0))
