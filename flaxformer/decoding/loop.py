"""The decoding loop: prefill once, then one step per token until the strategy has seen enough. Knows no strategy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import make_prompts
from flaxformer.decoding.strategies.base import Request, Strategy
from flaxformer.types import Array, PRNGKey


class Running(flax.struct.PyTreeNode):
    """A batch that is being decoded.

    Attributes:
      context: what stays as it is.
      tokens: `[R]`, written last and not read yet.
      memory: what the model remembers.
      state: the strategy's.
    """

    context: Any
    tokens: Int[Array, " R"]
    memory: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Loop:
    """One token per step and row.

    Attributes:
      session: the model.
      strategy: what chooses.
      request: what is asked of every item.
      bos_id: the start token, or None.
    """

    session: ModelSession
    strategy: Strategy
    request: Request
    bos_id: int | None

    def begin(self, variables: Mapping[str, Any], inputs: Mapping[str, Array], rng: PRNGKey) -> Running:
        """Reads the inputs and writes the first token of every row.

        The rows of an item are made after the prefill, which therefore runs at the batch size of the inputs.

        Raises:
          ValueError: when the model's vocabulary has no such EOS, or the strategy wants more than it has.
        """
        session, strategy = self.session, self.strategy
        prompts = make_prompts(inputs, self.request.batch, self.bos_id)
        context = session.open(variables, inputs)
        cache_length = prompts.tokens.shape[1] + self.request.max_new_tokens - (not strategy.reads_last)
        logits, context, memory = session.prefill(context, prompts, cache_length)
        check_vocabulary(strategy, self.request, logits.shape[-1])
        state = strategy.init(self.request, prompts, rng)
        logits = jnp.repeat(logits, strategy.width, axis=0)  # equal rows: no reordering
        tokens, _, state = strategy.update(logits, state)
        return Running(context, tokens, session.expand(memory, strategy.width), state)

    def done(self, running: Running) -> Bool[Array, ""]:
        return self.strategy.done(running.state)

    def step(self, running: Running) -> Running:
        """One more token per row. The last one written is not read."""
        logits, memory = self.session.step(running.context, running.memory, running.tokens)
        tokens, parents, state = self.strategy.update(logits, running.state)
        if parents is not None:
            memory = self.session.reorder(memory, parents)
        return running.replace(tokens=tokens, memory=memory, state=state)

    def finish(self, running: Running) -> Any:
        return self.strategy.finish(running.state)


def run(loop: Any, running: Any, steps: int | None = None) -> Any:
    """Takes steps until the loop is done, or at most `steps` of them. The loop's context stays outside of the carry."""
    context = running.context

    def go_on(carry: Any) -> Bool[Array, ""]:
        taken, running = carry
        ahead = ~loop.done(running.replace(context=context))
        return ahead if steps is None else ahead & (taken < steps)

    def step(carry: Any) -> Any:
        taken, running = carry
        return taken + 1, loop.step(running.replace(context=context)).replace(context=None)

    start = (jnp.zeros((), jnp.int32), running.replace(context=None))
    return jax.lax.while_loop(go_on, step, start)[1].replace(context=context)


def check_vocabulary(strategy: Strategy, request: Request, vocabulary: int) -> None:
    """Refuses what the model's vocabulary does not allow."""
    if not 0 <= request.eos_id < vocabulary:
        raise ValueError(
            f"eos_id is {request.eos_id}; expected an id of the model's vocabulary of {vocabulary} tokens. "
            "Take the eos_id of the vocabulary that the model was trained with."
        )
    strategy.check_vocabulary(vocabulary)
