"""What a model's tables hold: ids and sequences that they do not hold are refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.core import Tracer

from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import ENCODER_TOKENS, PROMPT_TOKENS, check_integers
from flaxformer.types import Array


def check_ids(session: ModelSession, variables: Mapping[str, Any], bos_id: int | None, ids: Mapping[str, Any]) -> None:
    """Refuses ids that no token table holds, where the ids are known.

    Args:
      session: the model.
      variables: its variables.
      bos_id: what the decoder reads first.
      ids: arrays by name; all but the encoder's belong to the decoder.

    Raises:
      ValueError: naming the array.
    """
    sizes = session.vocabulary_sizes(variables)
    for name, array in {"bos_id": bos_id, **ids}.items():
        stack = "encoder" if name == ENCODER_TOKENS else "decoder"
        if array is None or stack not in sizes or isinstance(array, Tracer) or not np.size(array):
            continue
        check_integers(name, array)
        values = np.asarray(array)  # a known array stays known while something else is traced
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= sizes[stack]:
            raise ValueError(
                f"'{name}' holds ids from {low} to {high}; expected 0 to {sizes[stack] - 1}, the {stack}'s vocabulary. "
                "Encode the text with the vocabulary that the model was trained with."
            )


def check_lengths(
    session: ModelSession, variables: Mapping[str, Any], inputs: Mapping[str, Array], prompt: int, new_tokens: int
) -> None:
    """Refuses sequences longer than the position table of their stack.

    Args:
      session: the model.
      variables: its variables.
      inputs: as `read_inputs` returns them.
      prompt: what the decoder reads first, its start token included.
      new_tokens: what it reads of the tokens behind.

    Raises:
      ValueError: as said.
    """
    limits = session.longest_sequences(variables)
    read = prompt + new_tokens
    if read > limits.get("decoder", read):
        raise ValueError(
            f"the decoder would read {read} positions ({prompt} of the prompt and its start, {new_tokens} of the "
            f"tokens behind); expected at most {limits['decoder']}, the size of its position table. "
            "Ask for fewer tokens or shorten the prompt."
        )
    source = inputs[ENCODER_TOKENS].shape[1] if ENCODER_TOKENS in inputs else 0
    if source > limits.get("encoder", source):
        raise ValueError(
            f"'{ENCODER_TOKENS}' has {source} columns; expected at most {limits['encoder']}, the size of the encoder's "
            "position table. Shorten the inputs."
        )


def known_ids(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The entries of inputs that are ids."""
    return {name: inputs[name] for name in (ENCODER_TOKENS, PROMPT_TOKENS) if name in inputs}
