"""From examples to the arrays that models read, by T5X's feature names.

Glossary:

* *example*: a mapping with the 1-D integer arrays `inputs` and `targets`, without padding.
* *row*: the examples that share one row of a batch: one when padding, several when packing.
* *segment*: the number of an example within its row, from 1; 0 marks padding.
* *axis*: a token axis of a row with a length of its own. An encoder-decoder row has two (encoder, decoder), a
  decoder-only row has one.
* *converter*: an object that says how many tokens of each axis an example takes (`sizes`), cuts an example to fit
  (`trim`), and lays rows out (`__call__`). `EncoderDecoderFeatures` and `DecoderOnlyFeatures` are the two here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

Example = Mapping[str, np.ndarray]
Row = Sequence[Example]
Batch = dict[str, np.ndarray]


@runtime_checkable
class Converter(Protocol):
    """What packing, batching and the bridges need to know about a kind of model."""

    def sizes(self, example: Example) -> tuple[int, ...]:
        """Tokens that the example takes on each axis; raises `ValueError` for an example that no model can read."""
        ...

    def trim(self, example: Example, lengths: Sequence[int]) -> Example:
        """The example cut at its end to fit `lengths`."""
        ...

    def __call__(self, rows: Sequence[Row], lengths: Sequence[int], packed: bool = False) -> Batch:
        """The batch of `rows`, each axis padded to its length."""
        ...


@dataclasses.dataclass(frozen=True)
class EncoderDecoderFeatures:
    """Features of encoder-decoder models: `inputs` are encoded, `targets` decoded.

    >>> example = {"inputs": np.array([9, 4, 1]), "targets": np.array([3, 1])}
    >>> batch = EncoderDecoderFeatures()([[example]], lengths=(4, 3))
    >>> batch["decoder_input_tokens"].tolist(), batch["decoder_target_tokens"].tolist()
    ([[0, 3, 1]], [[3, 1, 0]])

    Attributes:
      vocab_size: ids from here on are refused; None accepts any.
    """

    vocab_size: int | None = None

    def sizes(self, example: Example) -> tuple[int, int]:
        """(encoder tokens, decoder tokens)."""
        inputs, targets = (_tokens(example, key, self.vocab_size) for key in ("inputs", "targets"))
        return inputs.size, targets.size

    def trim(self, example: Example, lengths: Sequence[int]) -> Example:
        """Both sequences cut at their ends, as seqio does; what is cut includes the end-of-sequence token."""
        return {"inputs": example["inputs"][: lengths[0]], "targets": example["targets"][: lengths[1]]}

    def __call__(self, rows: Sequence[Row], lengths: Sequence[int], packed: bool = False) -> Batch:
        """Lays rows out.

        Args:
          rows: B rows; a row may be empty, and is then all padding with no loss weight.
          lengths: (encoder length, decoder length).
          packed: add segment ids and positions; needed for rows of more than one example.

        Raises:
          ValueError: for rows that do not fit, and for rows of several examples when not packed.
        """
        _check_lengths(lengths, 2, "an encoder-decoder row has an encoder and a decoder length")
        _check_rows(rows, packed)
        encoder = _lay_out([[example["inputs"] for example in row] for row in rows], lengths[0], "inputs")
        decoder = _lay_out([[example["targets"] for example in row] for row in rows], lengths[1], "targets")
        batch = {
            "encoder_input_tokens": encoder.tokens,
            "decoder_input_tokens": shift_right(decoder.tokens, decoder.segment_ids if packed else None),
            "decoder_target_tokens": decoder.tokens,
            "decoder_loss_weights": (decoder.tokens != 0).astype(np.float32),
        }
        return batch | encoder.packing("encoder") | decoder.packing("decoder") if packed else batch


@dataclasses.dataclass(frozen=True)
class DecoderOnlyFeatures:
    """Features of decoder-only models: `inputs` followed by `targets`, with attention both ways among the inputs.

    An example without `inputs` is a plain language-model example. `decoder_causal_attention` is 1 on the inputs and on
    one more position: the token fed there is the last input token, since decoder inputs are shifted by one.

    >>> example = {"inputs": np.array([9, 4, 6, 1]), "targets": np.array([3, 9, 1])}
    >>> batch = DecoderOnlyFeatures()([[example]], lengths=(9,))
    >>> for name, row in batch.items():
    ...     print(f"{name:24}", *row[0].astype(int))
    decoder_input_tokens     0 9 4 6 1 3 9 1 0
    decoder_target_tokens    9 4 6 1 3 9 1 0 0
    decoder_loss_weights     0 0 0 0 1 1 1 0 0
    decoder_causal_attention 1 1 1 1 1 0 0 0 0

    Attributes:
      vocab_size: ids from here on are refused; None accepts any.
      loss_on_inputs: whether predicting the inputs counts too.
    """

    vocab_size: int | None = None
    loss_on_inputs: bool = False

    def sizes(self, example: Example) -> tuple[int]:
        """(decoder tokens,), inputs and targets together."""
        inputs = _tokens(example, "inputs", self.vocab_size).size if "inputs" in example else 0
        return (inputs + _tokens(example, "targets", self.vocab_size).size,)

    def trim(self, example: Example, lengths: Sequence[int]) -> Example:
        """The targets cut at their end; refuses inputs that leave no room for a target."""
        room = lengths[0] - len(example.get("inputs", ()))
        if room < 1:
            raise ValueError(
                f"inputs have {lengths[0] - room} tokens and the row {lengths[0]}; expected room for at least one "
                "target. Shorten the inputs or use longer rows."
            )
        return {**example, "targets": example["targets"][:room]}

    def __call__(self, rows: Sequence[Row], lengths: Sequence[int], packed: bool = False) -> Batch:
        """Lays rows out; arguments and errors as in `EncoderDecoderFeatures`, with `lengths = (decoder length,)`."""
        _check_lengths(lengths, 1, "a decoder-only row has one length")
        _check_rows(rows, packed)
        empty = np.zeros(0, np.int32)
        pairs = [[(example.get("inputs", empty), example["targets"]) for example in row] for row in rows]
        joined = _lay_out([[np.concatenate(pair) for pair in row] for row in pairs], lengths[0], "inputs and targets")
        prefixes = [[np.full(len(x) + len(y), len(x)) for x, y in row] for row in pairs]
        prefix = _lay_out(prefixes, lengths[0], "inputs and targets").tokens  # [B T]: inputs of the token's segment
        real = joined.segment_ids > 0
        counted = real & (self.loss_on_inputs | (joined.positions >= prefix)) & (joined.tokens != 0)
        batch = {
            "decoder_input_tokens": shift_right(joined.tokens, joined.segment_ids if packed else None),
            "decoder_target_tokens": joined.tokens,
            "decoder_loss_weights": counted.astype(np.float32),
            "decoder_causal_attention": (real & (joined.positions <= prefix)).astype(np.int32),
        }
        return batch | joined.packing("decoder") if packed else batch


def shift_right(
    tokens: Int[np.ndarray, "B T"], segment_ids: Int[np.ndarray, "B T"] | None = None, bos_id: int = 0
) -> Int[np.ndarray, "B T"]:
    """Decoder inputs of teacher forcing: the token before each one, `bos_id` at the start of a row or segment.

    >>> shift_right(np.array([[5, 6, 7, 8, 0]]), np.array([[1, 1, 2, 2, 0]])).tolist()
    [[0, 5, 0, 7, 0]]
    """
    shifted = np.full_like(tokens, bos_id)
    shifted[:, 1:] = tokens[:, :-1]
    if segment_ids is not None:
        shifted[:, 1:][segment_ids[:, 1:] != segment_ids[:, :-1]] = bos_id
    return shifted


@dataclasses.dataclass(frozen=True)
class _Layout:
    """One axis of a batch, all `[B T]` int32."""

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray

    def packing(self, side: str) -> Batch:
        return {f"{side}_segment_ids": self.segment_ids, f"{side}_positions": self.positions}


def _lay_out(rows: Sequence[Sequence[np.ndarray]], length: int, name: str) -> _Layout:
    tokens, segment_ids, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    for index, row in enumerate(rows):
        start = 0
        for segment, sequence in enumerate(row, start=1):
            end = start + len(sequence)
            if end > length:
                raise ValueError(
                    f"row {index} holds {sum(map(len, row))} tokens of {name}; expected at most {length}. "
                    "Use longer rows, or trim the examples first."
                )
            tokens[index, start:end] = sequence
            segment_ids[index, start:end] = segment
            positions[index, start:end] = np.arange(end - start)
            start = end
    return _Layout(tokens, segment_ids, positions)


def _check_lengths(lengths: Sequence[int], axes: int, sentence: str) -> None:
    if len(lengths) != axes or any(length < 1 for length in lengths):
        raise ValueError(f"lengths is {tuple(lengths)}; expected {axes} positive number(s): {sentence}.")


def _check_rows(rows: Sequence[Row], packed: bool) -> None:
    if not any(len(row) for row in rows):
        raise ValueError(f"the batch of {len(rows)} row(s) holds no example; expected at least one.")
    fullest = max(len(row) for row in rows)
    if fullest > 1 and not packed:
        raise ValueError(
            f"a row holds {fullest} examples and packed is False; expected one example per row. "
            "Pass packed=True, so that segment ids keep the examples apart."
        )


def _tokens(example: Example, key: str, vocab_size: int | None) -> np.ndarray:
    """The sequence `key` of the example, checked."""
    if key not in example:
        raise ValueError(f"the example has {sorted(example)}; expected the key {key!r}.")
    tokens = np.asarray(example[key])
    if tokens.ndim != 1 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{key} has shape {tokens.shape} and dtype {tokens.dtype}; expected a 1-D array of at least one integer id."
        )
    low, high = tokens.min(), tokens.max()
    if low < 1:
        raise ValueError(
            f"{key} holds the id {low}; expected ids from 1 on. Id 0 is padding and is added by batching: strip it."
        )
    if vocab_size is not None and high >= vocab_size:
        raise ValueError(
            f"{key} holds the unknown id {high}; expected ids below vocab_size = {vocab_size}. "
            "Encode with the vocabulary that the model was configured for."
        )
    return tokens
