"""A prompt that is read once and continued many times: a system prompt, or the examples of a few-shot task.

    shared = prefill(model, variables, instructions)
    generate(model, variables, questions, prefix=shared, ...)      # as if every question began with the instructions

What is kept is the cache; nobody writes to it, so that it serves any number of calls. Beams share it as they share any
prompt: without copies, where the caches can (see `ModelSession`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.decoding.cache_rows import count_rows, pick_rows, repeat_rows
from flaxformer.decoding.limits import check_ids, check_lengths, known_ids
from flaxformer.decoding.model_session import Context, Memory, ModelSession
from flaxformer.decoding.prompts import (
    PREFIX,
    PROMPT_TOKENS,
    Prompts,
    longest_prompt,
    make_prompts,
    read_inputs,
    readable,
)
from flaxformer.decoding.static import Static
from flaxformer.types import Array


class Prefix(flax.struct.PyTreeNode):
    """A prompt that a model has read.

    Attributes:
      memory: what the model remembers, `step` being the one that read it.
      prompts: what was read, one row per item or one for all.
    """

    memory: Memory
    prompts: Prompts

    @property
    def length(self) -> int:
        """Its tokens with the start token and padding."""
        return self.memory.prompt

    @property
    def rows(self) -> int:
        """Of the batch that was read, 1 if all share it."""
        return len(self.prompts.tokens)

    def of_items(self, items: Int[np.ndarray, " b"]) -> Prefix:
        """The prefix for some of the items."""
        if self.rows == 1:
            return self
        memory, pick = self.memory, lambda x: x[items] if x.ndim and x.shape[0] > 1 else x
        cache = pick_rows(memory.cache, jnp.asarray(items), memory.stacked)
        step, hidden, prompts = jax.tree.map(pick, (memory.step, memory.hidden, self.prompts))
        return Prefix(memory.replace(cache=cache, step=step, hidden=hidden), prompts)


def prefill(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    *,
    pad_id: int = 0,
    bos_id: int | None = 0,
    room: int = 0,
    hidden: bool = False,
) -> Prefix:
    """Reads a prompt, to be continued by `generate(..., prefix=)`.

    Args:
      model: a decoder-only Linen module that takes a `Step`.
      variables: with the collection 'params'.
      inputs: `decoder_prompt_tokens [B P]`, or `[1 P]` for a prompt that all items of later batches share; `valid`, as
        for `generate`.
      pad_id: pads the prompt.
      bos_id: what the decoder reads first; None: the prompt starts with a token of its own choice.
      room: cache slots for what will follow. Needed where some cache cannot be given more slots later, which the error
        says: then at least the longest continuation and all new tokens.
      hidden: keep the last hidden states too, which `Contrastive` compares with.

    Raises:
      ValueError: for an encoder-decoder, whose prompt depends on what is encoded; and for prompts that `generate`
        would refuse.
    """
    session = ModelSession(model)
    if session.has_encoder:
        raise ValueError(
            f"prefill got the encoder-decoder {type(model).__name__}; expected a decoder-only model, since what its "
            "decoder keeps of a prompt depends on the encoded input. Give 'decoder_prompt_tokens' to generate."
        )
    arrays = read_inputs(inputs, False, pad_id, bos_id)
    check_ids(session, variables, bos_id, known_ids(arrays))
    check_lengths(session, variables, arrays, longest_prompt(arrays, bos_id), 0)
    return _prefill(Static(model), bos_id, room, hidden, readable(variables), arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _prefill(
    model: Static, bos_id: int | None, room: int, hidden: bool, variables: Any, inputs: Mapping[str, Array]
) -> Prefix:
    session = ModelSession(model.value, hidden)
    prompts = make_prompts(inputs, len(inputs[PROMPT_TOKENS]), bos_id)
    memory = session.read_prompt(session.open(variables, inputs), prompts, prompts.tokens.shape[1] + room)[2]
    return Prefix(memory, prompts)


@dataclasses.dataclass(frozen=True)
class PrefixedSession(ModelSession):
    """A session that has read a prefix already.

    Attributes:
      prefix: its cache is copied, and the copy written to.
    """

    prefix: Prefix | None = None

    def seen(self, prompts: Prompts) -> Prompts:
        """The prefix and the prompts in one, the padding between them moved to the front."""
        assert self.prefix is not None
        before, rows = self.prefix.prompts, len(prompts.tokens)
        order = self._order(prompts)
        join = lambda x, y: jnp.take_along_axis(_joined(x, y, rows), order, axis=1)  # noqa: E731
        flags = None if before.prefix is None else join(before.prefix, jnp.zeros(prompts.tokens.shape, bool))
        tokens, valid = join(before.tokens, prompts.tokens), join(before.valid, prompts.valid)
        return Prompts(tokens, valid, before.lengths + prompts.lengths, flags)

    def _order(self, prompts: Prompts) -> Int[Array, "B L"]:
        """The columns of prefix and prompts, padding first."""
        assert self.prefix is not None
        valid = _joined(self.prefix.prompts.valid, prompts.valid, len(prompts.tokens))
        return jnp.argsort(valid, axis=1, stable=True)

    def prefill(
        self, context: Context, prompts: Prompts, cache_length: int
    ) -> tuple[Float[Array, "B V"], Context, Memory]:
        """Reads the prompts behind the prefix; returns the logits behind them."""
        assert self.prefix is not None
        prefix, length = self.prefix, prompts.tokens.shape[1]
        before = prefix.memory.hidden
        memory = _with_slots(_with_rows(prefix.memory, len(prompts.tokens)), prefix.length + cache_length)
        memory = memory.replace(prompt=prefix.length + length, hidden=None)
        if self.hidden:
            logits, memory = self.take(context, memory, prompts.tokens, memory.step.advance(length, prompts.valid))
            assert before is not None and memory.hidden is not None
            hidden = _joined(before, memory.hidden, len(prompts.tokens))
            hidden = jnp.take_along_axis(hidden, self._order(prompts)[..., None], axis=1)
            return logits[:, -1], context, memory.replace(step=memory.step.advance(), hidden=hidden)
        if length > 1:
            step = memory.step.advance(length - 1, prompts.valid[:, :-1])
            _, memory = self.take(context, memory, prompts.tokens[:, :-1], step)
        memory = memory.replace(step=memory.step.advance())
        logits, memory = self.step(context, memory, prompts.tokens[:, -1])
        return logits, context, memory


def session_behind(prefix: Prefix | None, model: Any, hidden: bool = False) -> ModelSession:
    """The session of a model that has read the prefix, if there is one."""
    return ModelSession(model, hidden) if prefix is None else PrefixedSession(model, hidden, prefix)


def check_prefix(prefix: Any, inputs: Mapping[str, Array], guided: bool, wants_hidden: bool) -> None:
    """Refuses what cannot be continued.

    Args:
      prefix: what `generate` was given.
      inputs: of the continuations.
      guided: whether there is another context, which would need a prefix of its own.
      wants_hidden: whether the strategy looks at the hidden states of everything.

    Raises:
      ValueError: as said.
    """
    if not isinstance(prefix, Prefix):
        raise ValueError(f"prefix is {type(prefix).__name__}; expected what flaxformer.decoding.prefill returned.")
    if guided:
        raise ValueError("prefix was given with guidance; expected one of them: the other context has no prefix.")
    if PREFIX in inputs:
        raise ValueError(f"prefix was given with '{PREFIX}'; expected continuations that are read causally.")
    if wants_hidden and prefix.memory.hidden is None:
        raise ValueError(
            "the prefix keeps no hidden states and the strategy compares with them; expected them: make it with "
            "prefill(..., hidden=True)."
        )
    batch = len(inputs[PROMPT_TOKENS])
    if prefix.rows not in (1, batch):
        raise ValueError(
            f"prefix has {prefix.rows} rows and there are {batch} continuations; expected one row, or one for each."
        )


def _joined(before: Array, after: Array, rows: int) -> Array:
    """`[#B P ...]` and `[#B Q ...]` -> `[B P+Q ...]`."""
    return jnp.concatenate([jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (before, after)], axis=1)


def _with_rows(memory: Memory, rows: int) -> Memory:
    """The memory with that many rows, of one or as many."""
    if count_rows(memory.cache, memory.stacked) == rows:
        return memory
    return memory.replace(cache=repeat_rows(memory.cache, rows, memory.stacked))


def _with_slots(memory: Memory, slots: int) -> Memory:
    """The memory with that many slots, or with its own if it cannot be given others.

    Raises:
      ValueError: when those are too few.
    """
    found = memory.step.slots().cache_length
    if memory.branches:
        resized = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(slots - found, 0))])[..., :slots]  # noqa: E731
        step = dataclasses.replace(memory.step, cache_length=slots)
        return memory.replace(cache=jax.tree.map(resized, memory.cache), step=step)
    if slots > found:
        raise ValueError(
            f"the prefix has room for {found - memory.prompt} tokens and {slots - memory.prompt} follow; expected as "
            f"many. Its caches cannot grow: make it with prefill(..., room={slots - memory.prompt})."
        )
    return memory
