"""Classifier-free guidance: two contexts in one loop, and the difference that one of them makes, amplified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.decoding.model_session import Context, Memory, ModelSession
from flaxformer.decoding.prompts import ENCODER_TOKENS, PROMPT_TOKENS, VALID, Prompts
from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Pushes what is written away from what the model would write in another context.

    The log-probabilities of a step become `other + scale · (own - other)`; strategies and constraints see these. The
    rows of both contexts are read in one call of twice the batch.

    Attributes:
      inputs: the other context, of the same form as `generate`'s inputs: such as an empty or a neutral prompt.
      scale: 1 changes nothing, more pushes away, 0 writes from the other context. Changing it compiles nothing new.

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022); for language, Sanchez et al., "Stay on topic
    with Classifier-Free Guidance" (2023), equation 7.
    """

    inputs: Mapping[str, Array] | Array
    scale: float = 1.5


@dataclasses.dataclass(frozen=True)
class GuidedSession:
    """A session of which the second half of the rows is the other context. Rows that are written count once.

    Attributes:
      session: the model, which reads both halves.
      scale: see `Guidance`.
    """

    session: ModelSession
    scale: float | Float[Array, ""]
    copies = 2

    def open(self, variables: Mapping[str, Any], inputs: Mapping[str, Array]) -> Context:
        return self.session.open(variables, inputs)

    def seen(self, prompts: Prompts) -> Prompts:
        return self.session.seen(prompts)

    def prefill(
        self, context: Context, prompts: Prompts, cache_length: int
    ) -> tuple[Float[Array, "B V"], Context, Memory]:
        logits, context, memory = self.session.prefill(context, prompts, cache_length)
        return self._merged(logits), context, _own(memory)

    def unread(self, memory: Memory, prompts: Prompts, cache_length: int) -> Memory | None:
        return self.session.unread(memory, prompts, cache_length)

    def in_loop(self, context: Context, memory: Memory, rows: int, steps: int) -> Context:
        return self.session.in_loop(context, memory, rows, steps)

    def step(self, context: Context, memory: Memory, tokens: Int[Array, " R"]) -> tuple[Float[Array, "R V"], Memory]:
        logits, memory = self.session.step(context, memory, _twice(tokens))
        return self._merged(logits), _own(memory)

    def read(self, context: Context, memory: Memory, tokens: Int[Array, "R T"]) -> tuple[Float[Array, "R T V"], Memory]:
        logits, memory = self.session.read(context, memory, _twice(tokens))
        return self._merged(logits), _own(memory)

    def keep(self, before: Memory, after: Memory, counts: Int[Array, " R"]) -> Memory:
        return self.session.keep(before, after, _twice(counts))

    def expand(self, memory: Memory, width: int, branching: bool = False) -> Memory:
        return self.session.expand(memory, width, branching)

    def reorder(self, memory: Memory, rows: Int[Array, " R"]) -> Memory:
        return self.session.reorder(memory, jnp.concatenate([rows, rows + len(rows)]))

    def _merged(self, logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
        own, other = jnp.split(jax.nn.log_softmax(logits.astype(jnp.float32)), 2)
        return other + self.scale * (own - other)


def _own(memory: Memory) -> Memory:
    return memory if memory.hidden is None else memory.replace(hidden=jnp.split(memory.hidden, 2)[0])


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])


def both(own: Mapping[str, Array], other: Mapping[str, Array], source_pad_id: int) -> dict[str, Array]:
    """The inputs of both contexts in one batch, the shorter ones padded.

    Args:
      own, other: as `read_inputs` returns them.
      source_pad_id: pads what the encoder reads.

    Raises:
      ValueError: when they differ in kind or batch size.
    """
    named = [set(x) - {VALID} for x in (own, other)]
    sizes = [len(next(iter(x.values()))) for x in (own, other)]
    if named[0] != named[1] or sizes[0] != sizes[1]:
        raise ValueError(
            f"guidance.inputs has the entries {sorted(named[1])} for {sizes[1]} items; expected {sorted(named[0])} for "
            f"{sizes[0]} items, as the inputs have. Give every item its other context."
        )
    together = [_with_validity(x) for x in (own, other)] if PROMPT_TOKENS in own else [own, other]
    pads = {ENCODER_TOKENS: source_pad_id}
    return {name: _stacked(together[0][name], together[1][name], pads.get(name, 0)) for name in together[0]}


def _with_validity(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {VALID: jnp.ones(np.shape(inputs[PROMPT_TOKENS]), bool), **inputs}


def _stacked(own: Array, other: Array, pad: int) -> Array:
    length = max(own.shape[1], other.shape[1])
    room = [((0, 0), (0, length - x.shape[1])) for x in (own, other)]
    return jnp.concatenate(
        [jnp.pad(jnp.asarray(x), r, constant_values=pad) for x, r in zip((own, other), room, strict=True)]
    )
