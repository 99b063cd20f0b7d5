"""The decoding loop: prefill once, then one step per token until the strategy has seen enough. Knows no strategy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from flaxformer.decoding.checks import Fault, not_finite
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import make_prompts
from flaxformer.decoding.strategies.base import Request, Strategy
from flaxformer.squeezing import squeeze_leading
from flaxformer.types import Array, PRNGKey


class Running(flax.struct.PyTreeNode):
    """A batch that is being decoded.

    Attributes:
      context: what stays as it is.
      tokens: `[R]`, written last and not read yet.
      memory: what the model remembers.
      state: the strategy's.
      written: steps so far.
      fault: what was wrong with logits, where the loop checks them.
    """

    context: Any
    tokens: Int[Array, " R"]
    memory: Any
    state: Any
    written: Int[Array, ""]
    fault: Fault | None = None


@dataclasses.dataclass(frozen=True)
class Loop:
    """One token per step and row.

    Attributes:
      session: the model.
      strategy: what chooses.
      request: what is asked of every item.
      bos_id: the start token, or None.
      checks: whether to look for logits that are no numbers.
    """

    session: ModelSession
    strategy: Strategy
    request: Request
    bos_id: int | None
    checks: bool = False

    def begin(self, variables: Mapping[str, Any], inputs: Mapping[str, Array], rng: PRNGKey) -> Running:
        """Reads the inputs and, unless the first step may do so, writes the first token of every row.

        The rows of an item are made after the prefill, which therefore runs at the batch size of the inputs.

        Raises:
          ValueError: when the model's vocabulary has no such EOS, or the strategy wants more than it has.
        """
        session, strategy = self.session, self.strategy
        prompts = make_prompts(inputs, self.request.batch * session.copies, self.bos_id)
        context = session.open(variables, inputs)
        cache_length = prompts.tokens.shape[1] + self.request.max_new_tokens - (not strategy.reads_last)
        logits, context, memory = session.prefill(context, prompts, cache_length)
        check_vocabulary(strategy, self.request, logits.shape[-1])
        unread = session.unread(memory, prompts, cache_length)
        prompts = prompts.first(self.request.batch)
        state = strategy.init(self.request, session.seen(prompts), rng)
        fault = Fault.none() if self.checks else None
        if unread is None:
            logits = jnp.repeat(logits, strategy.width, axis=0)  # equal rows: no reordering
            fault = fault and fault.note(not_finite(logits), jnp.zeros((1,), jnp.int32))
            tokens, _, state = strategy.update(logits, state, **self._seen(memory))
        else:
            memory, tokens = unread, jnp.repeat(prompts.tokens[:, 0], strategy.width)
        return Running(
            context=context,
            tokens=tokens,
            memory=session.expand(memory, strategy.width, branching=True),
            state=state,
            written=jnp.asarray(unread is None, jnp.int32),
            fault=fault,
        )

    def _seen(self, memory: Any) -> dict[str, Any]:
        return {"hidden": memory.hidden} if self.strategy.wants_hidden else {}

    def done(self, running: Running) -> Bool[Array, ""]:
        return self.strategy.done(running.state)

    def rows(self, running: Running) -> int:
        """How many the model reads at a step."""
        return len(running.tokens) * self.session.copies

    def step(self, running: Running) -> Running:
        """One more token per row. The last one written is not read."""
        logits, memory = self.session.step(running.context, running.memory, running.tokens)
        fault = running.fault
        if fault is not None:
            fault = fault.note(not_finite(logits), running.written[None])
        tokens, parents, state = self.strategy.update(logits, running.state, **self._seen(memory))
        memory = memory.replace(hidden=None)
        if parents is not None:
            memory = self.session.reorder(memory, parents)
        written = running.written + 1
        return running.replace(tokens=tokens, memory=memory, state=state, written=written, fault=fault)

    def finish(self, running: Running) -> Any:
        return self.strategy.finish(running.state)

    def going(self, running: Running) -> Bool[Array, " B"]:
        """Which items still write."""
        going = self.strategy.going(running.state)
        return jnp.ones((self.request.batch,), bool) if going is None else going

    def so_far(self, running: Running) -> tuple[Int[Array, "R T"], Int[Array, " R"]]:
        """The tokens of every row that are certain to stay, and how many these are."""
        return self.strategy.so_far(running.state)


def run(loop: Any, running: Any, steps: int | None = None) -> Any:
    """Takes steps until the loop is done, or at most `steps` of them. The loop's context stays outside of the carry.

    Caches are carried as attention reads them, see `flaxformer.squeezing`.
    """
    context = running.context
    ahead = loop.request.max_new_tokens if steps is None else steps
    inside = loop.session.in_loop(context, running.memory, loop.rows(running), ahead)
    shapes = jax.tree.map(jnp.shape, running.replace(context=None))

    def squeezed(running: Any) -> Any:
        return jax.tree.map(squeeze_leading, running.replace(context=None))

    def split(carried: Any, context: Any) -> Any:
        return jax.tree.map(lambda x, shape: x.reshape(shape), carried, shapes).replace(context=context)

    def go_on(carry: Any) -> Bool[Array, ""]:
        taken, carried = carry
        ahead = ~loop.done(split(carried, context))
        return ahead if steps is None else ahead & (taken < steps)

    def step(carry: Any) -> Any:
        taken, carried = carry
        return taken + 1, squeezed(loop.step(split(carried, inside)))

    start = (jnp.zeros((), jnp.int32), squeezed(running))
    return split(jax.lax.while_loop(go_on, step, start)[1], context)


def check_vocabulary(strategy: Any, request: Request, vocabulary: int) -> None:
    """Refuses what the model's vocabulary does not allow to a strategy or a constraint."""
    if not all(0 <= eos < vocabulary for eos in request.eos_ids):
        raise ValueError(
            f"eos_id is {request.eos_id}; expected an id of the model's vocabulary of {vocabulary} tokens. "
            "Take the eos_id of the vocabulary that the model was trained with."
        )
    strategy.check_vocabulary(vocabulary)
