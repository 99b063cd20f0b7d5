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
from jaxtyping import Float, Int

from flaxformer.decoding.model_session import Context, Memory, ModelSession
from flaxformer.decoding.prompts import PROMPT_TOKENS, Prompts, make_prompts, read_inputs
from flaxformer.decoding.static import Static
from flaxformer.decoding.t5x_caches import cache_map, flat_batch_beam_expand
from flaxformer.types import Array


class Prefix(flax.struct.PyTreeNode):
    """A prompt that a model has read.

    Attributes:
      memory: what the model remembers, `step` being the one that read it.
      lengths: `[B]` or `[1]`, its tokens without the start token.
    """

    memory: Memory
    lengths: Int[Array, "#B"]

    @property
    def length(self) -> int:
        """Its tokens with the start token and padding."""
        return self.memory.prompt


def prefill(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    *,
    pad_id: int = 0,
    bos_id: int | None = 0,
    room: int = 0,
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
    return _prefill(Static(model), bos_id, room, {"params": variables["params"]}, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(model: Static, bos_id: int | None, room: int, variables: Any, inputs: Mapping[str, Array]) -> Prefix:
    session = ModelSession(model.value)
    prompts = make_prompts(inputs, len(inputs[PROMPT_TOKENS]), bos_id)
    memory = session.read_prompt(session.open(variables, inputs), prompts, prompts.tokens.shape[1] + room)[2]
    return Prefix(memory, prompts.lengths)


@dataclasses.dataclass(frozen=True)
class PrefixedSession(ModelSession):
    """A session that has read a prefix already.

    Attributes:
      prefix: its cache is copied, and the copy written to.
    """

    prefix: Prefix | None = None

    @property
    def lengths_before(self) -> Int[Array, "#B"]:
        assert self.prefix is not None
        return self.prefix.lengths

    def prefill(
        self, context: Context, prompts: Prompts, cache_length: int
    ) -> tuple[Float[Array, "B V"], Context, Memory]:
        """Reads the prompts behind the prefix; returns the logits behind them."""
        assert self.prefix is not None
        prefix, length = self.prefix, prompts.tokens.shape[1]
        memory = _with_slots(_with_rows(prefix.memory, len(prompts.tokens)), prefix.length + cache_length)
        memory = memory.replace(prompt=prefix.length + length)
        if length > 1:
            step = memory.step.advance(length - 1, prompts.valid[:, :-1])
            _, memory = self.take(context, memory, prompts.tokens[:, :-1], step)
        memory = memory.replace(step=memory.step.advance())
        logits, memory = self.step(context, memory, prompts.tokens[:, -1])
        return logits, context, memory


def check_prefix(prefix: Any, batch: int, others: bool) -> None:
    """Refuses what cannot be continued.

    Args:
      prefix: what `generate` was given.
      batch: of the continuations.
      others: whether a draft or guidance is to take part, which would need prefixes of their own.

    Raises:
      ValueError: as said.
    """
    if not isinstance(prefix, Prefix):
        raise ValueError(f"prefix is {type(prefix).__name__}; expected what flaxformer.decoding.prefill returned.")
    if others:
        raise ValueError("prefix was given with draft or guidance; expected neither: they would have to read it too.")
    if len(prefix.lengths) not in (1, batch):
        raise ValueError(
            f"prefix has {len(prefix.lengths)} rows and there are {batch} continuations; expected one row, or one for "
            "each."
        )


def _with_rows(memory: Memory, rows: int) -> Memory:
    """The memory with that many rows, of one or as many."""
    found = jax.tree.leaves(memory.cache)[0].shape[memory.row_axis]
    if found == rows:
        return memory
    return memory.replace(cache=cache_map(lambda x: flat_batch_beam_expand(x, rows, memory.row_axis), memory.cache))


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
