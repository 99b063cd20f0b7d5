"""The decoding loop: prefill once, then one step per token until the strategy has seen enough. Knows no strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import make_prompts
from flaxformer.decoding.strategies.base import Generated, Request, Strategy
from flaxformer.types import Array, PRNGKey


def decode(
    session: ModelSession,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array],
    strategy: Strategy,
    request: Request,
    bos_id: int | None,
    rng: PRNGKey,
) -> Generated:
    """Reads the inputs, then lets the strategy write: pure, to be jitted.

    The rows of an item are made after the prefill, which therefore runs at the batch size of the inputs, and the last
    token written is never read.

    Raises:
      ValueError: when the model's vocabulary has no such EOS, or the strategy wants more than it has.
    """
    prompts = make_prompts(inputs, request.batch, bos_id)
    context = session.open(variables, inputs)
    cache_length = prompts.tokens.shape[1] + request.max_new_tokens - 1
    logits, context, memory = session.prefill(context, prompts, cache_length)
    _check_vocabulary(strategy, request, logits.shape[-1])

    state = strategy.init(request, prompts.lengths, rng)
    tokens, _, state = strategy.update(jnp.repeat(logits, strategy.width, axis=0), state)  # equal rows: no reordering
    memory = session.expand(memory, strategy.width)

    def step(carry: Any) -> Any:
        tokens, memory, state = carry
        logits, memory = session.step(context, memory, tokens)
        tokens, parents, state = strategy.update(logits, state)
        if parents is not None:
            memory = session.reorder(memory, parents)
        return tokens, memory, state

    *_, state = jax.lax.while_loop(lambda carry: ~strategy.done(carry[-1]), step, (tokens, memory, state))
    return strategy.finish(state)


def _check_vocabulary(strategy: Strategy, request: Request, vocabulary: int) -> None:
    if not 0 <= request.eos_id < vocabulary:
        raise ValueError(
            f"eos_id is {request.eos_id}; expected an id of the model's vocabulary of {vocabulary} tokens. "
            "Take the eos_id of the vocabulary that the model was trained with."
        )
    strategy.check_vocabulary(vocabulary)
