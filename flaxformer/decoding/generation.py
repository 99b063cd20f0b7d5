"""`generate`: one entry for every model and every strategy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from flaxformer.decoding.loop import Loop, run
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import ENCODER_TOKENS, PROMPT_TOKENS, longest_prompt, read_inputs
from flaxformer.decoding.strategies.base import Generated, Request, Strategy
from flaxformer.types import Array, PRNGKey

_NOT_READ = ("cache", "cross_cache", "intermediates")


def generate(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    *,
    strategy: Strategy,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    bos_id: int | None = 0,
    rng: PRNGKey | None = None,
) -> Generated:
    """Writes sequences with a model, compiled once per model, strategy and shapes.

    The decoder reads `bos_id`, then the prompt if there is one; both stay out of the result. Prompts of differing
    lengths go into one batch, padded on either side; a row's result does not depend on its padding.

        tokens, scores, lengths = generate(model, variables, {"encoder_input_tokens": source},
                                           strategy=BeamSearch(num_beams=4), max_new_tokens=64, eos_id=1)

    Args:
      model: a Linen module that takes a `Step`: an encoder-decoder (`encode` and `decode`) or decoder-only.
      variables: with the collection 'params'.
      inputs: `encoder_input_tokens [B S]` (padded with 0) and optionally a forced `decoder_prompt_tokens [B P]`; for a
        decoder-only model `decoder_prompt_tokens [B P]`, and for a prefix language model also
        `decoder_causal_attention [B P]`, 1 where tokens all see each other (the start token joins them). The first of
        these may be given as a bare array. `valid [B P]` says which tokens of the prompt are real, if not all but
        `pad_id`.
      strategy: `Greedy()`, `Sample(...)` or `BeamSearch(...)`.
      max_new_tokens: T.
      eos_id: ends a sequence; it counts as a token of it.
      pad_id: pads prompts and results.
      bos_id: what the decoder reads first. None: prompts start with a token of their own choice.
      rng: for strategies that draw; None is `jax.random.PRNGKey(0)`.

    Returns:
      tokens `[B n T]` int32, scores `[B n]` float32 and lengths `[B n]` int32, best first. What a score is, and n, the
      strategy says.

    Raises:
      ValueError: before anything runs, for what cannot work: a strategy's settings, ids outside the vocabulary, an
        empty batch, sequences longer than the model's position table.
    """
    session = ModelSession(model)
    if not isinstance(strategy, Strategy):
        raise ValueError(f"strategy is {strategy!r}; expected a strategy object such as Greedy() or BeamSearch(4).")
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)}; expected 'params' among them. "
            "Pass what model.init returned, or {'params': params}."
        )
    if not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 1.")
    if bos_id is None and session.has_encoder:
        raise ValueError("bos_id is None; expected the id that this encoder-decoder's decoder starts from, often 0.")
    arrays = read_inputs(inputs, session.has_encoder, pad_id, bos_id)
    batch = len(next(iter(arrays.values())))
    strategy.check(batch)
    _check_ids(session, variables, arrays)
    _check_lengths(session, variables, arrays, longest_prompt(arrays, bos_id), int(max_new_tokens))
    return _compiled(
        _Static(session),
        Request(batch, int(max_new_tokens), int(eos_id), int(pad_id)),
        bos_id,
        {name: x for name, x in variables.items() if name not in _NOT_READ and not name.endswith("_axes")},
        arrays,
        strategy,
        jax.random.PRNGKey(0) if rng is None else rng,
    )


def _check_ids(session: ModelSession, variables: Mapping[str, Any], inputs: Mapping[str, Array]) -> None:
    """Ids that no token table holds, where the ids are known."""
    sizes = session.vocabulary_sizes(variables)
    for name, stack in ((ENCODER_TOKENS, "encoder"), (PROMPT_TOKENS, "decoder")):
        ids = inputs.get(name)
        if ids is None or stack not in sizes or isinstance(ids, Tracer) or not np.size(ids):
            continue
        low, high = int(np.min(ids)), int(np.max(ids))
        if low < 0 or high >= sizes[stack]:
            raise ValueError(
                f"'{name}' holds ids from {low} to {high}; expected 0 to {sizes[stack] - 1}, the {stack}'s vocabulary. "
                "Encode the text with the vocabulary that the model was trained with."
            )


def _check_lengths(
    session: ModelSession, variables: Mapping[str, Any], inputs: Mapping[str, Array], prompt: int, new_tokens: int
) -> None:
    """What is known to be too long before anything runs."""
    limits = session.longest_sequences(variables)
    read = prompt + new_tokens - 1
    if read > limits.get("decoder", read):
        raise ValueError(
            f"the decoder would read {read} positions ({prompt} of the prompt and its start, {new_tokens - 1} of "
            f"max_new_tokens={new_tokens}); expected at most {limits['decoder']}, the size of its position table. "
            "Ask for fewer tokens or shorten the prompt."
        )
    source = inputs[ENCODER_TOKENS].shape[1] if ENCODER_TOKENS in inputs else 0
    if source > limits.get("encoder", source):
        raise ValueError(
            f"'{ENCODER_TOKENS}' has {source} columns; expected at most {limits['encoder']}, the size of the encoder's "
            "position table. Shorten the inputs."
        )


class _Static:
    """Makes anything a static argument: compared by value where it can be hashed, else by identity."""

    def __init__(self, value: Any):
        self.value = value
        try:
            self._hash = hash(value)
            self._by_value = True
        except TypeError:  # a module that holds a list, a dictionary or an array
            self._hash = hash((type(value), *map(id, vars(value).values())))
            self._by_value = False

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static) or self._hash != other._hash or self._by_value != other._by_value:
            return False
        if self._by_value:
            return self.value == other.value
        return self.value.model is other.value.model


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    session: _Static,
    request: Request,
    bos_id: int | None,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array],
    strategy: Strategy,
    rng: PRNGKey,
) -> Generated:
    loop = Loop(session.value, strategy, request, bos_id)
    return loop.finish(run(loop, loop.begin(variables, inputs, rng)))
