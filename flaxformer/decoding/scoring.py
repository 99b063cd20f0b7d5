"""`score`: how probable a model finds given targets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.limits import check_ids, check_lengths, known_ids
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prefix import Prefix, check_prefix, session_behind
from flaxformer.decoding.prompts import longest_prompt, make_prompts, read_inputs, readable
from flaxformer.decoding.scores import target_log_probs
from flaxformer.decoding.slots import widened
from flaxformer.decoding.static import Static
from flaxformer.types import Array


class Scores(NamedTuple):
    """Log-probabilities of targets.

    Attributes:
      tokens: `[... T]` float32, of every token given those before it; 0 at padding.
      sequences: `[...]` float32, their sums.
    """

    tokens: Float[Array, "... T"]
    sequences: Float[Array, ...]


def score(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    targets: Int[Array, "B T"] | Int[Array, "B n T"],
    *,
    lengths: Int[Array, "B ..."] | None = None,
    pad_id: int = 0,
    bos_id: int | None = 0,
    prefix: Prefix | None = None,
) -> Scores:
    """The log-probability of every target token behind its inputs, per token and per sequence.

    Inputs are read once per item and by the same code that `generate` runs, caches included, so that the score of
    `Greedy` is the score of its result. Several targets per item share what is read.

    Args:
      model, variables, inputs, bos_id: as in `generate`.
      targets: `[B T]`, or `[B n T]` with n of an item, such as the tokens that `generate` returns; padded behind.
      lengths: `[B]` or `[B n]`, how many tokens of a target count; those before its trailing `pad_id` if None.
      pad_id: pads prompts and targets.
      prefix: what `prefill` has read in front of every prompt.

    Raises:
      ValueError: for targets of another batch size or rank, and for what `generate` refuses in inputs.
    """
    session = ModelSession(model)
    if session.has_encoder and bos_id is None:
        raise ValueError("bos_id is None; expected the id that this encoder-decoder's decoder starts from, often 0.")
    bos_id = bos_id if prefix is None else None  # which the prefix starts with
    arrays = read_inputs(inputs, session.has_encoder, pad_id, bos_id)
    if prefix is not None:
        check_prefix(prefix, arrays, guided=False, wants_hidden=False)
    batch, shape = len(next(iter(arrays.values()))), np.shape(targets)
    if len(shape) not in (2, 3) or shape[0] != batch or 0 in shape:
        raise ValueError(f"targets have shape {shape}; expected [{batch}, length] or [{batch}, n, length].")
    if lengths is not None and np.shape(lengths) != shape[:-1]:
        raise ValueError(f"lengths have shape {np.shape(lengths)}; expected {shape[:-1]}, one for every target.")
    rows = jnp.asarray(targets, jnp.int32).reshape(-1, shape[-1])
    if lengths is None:
        real = jnp.flip(jnp.cumsum(jnp.flip(rows != pad_id, axis=1), axis=1), axis=1) > 0
    else:
        real = jnp.arange(shape[-1]) < jnp.asarray(lengths).reshape(-1, 1)
    rows = jnp.where(real, rows, 0)
    check_ids(session, variables, bos_id, known_ids(arrays) | {"targets": rows})
    before = 0 if prefix is None else prefix.length
    check_lengths(session, variables, arrays, before + longest_prompt(arrays, bos_id), shape[-1] - 1)
    found = _score(Static(model), bos_id, readable(variables), arrays, rows, real, prefix)
    return Scores(found.reshape(shape), found.sum(axis=-1).reshape(shape[:-1]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    model: Static,
    bos_id: int | None,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array],
    targets: Int[Array, "R T"],
    real: Bool[Array, "R T"],
    prefix: Prefix | None,
) -> Float[Array, "R T"]:
    session = session_behind(prefix, model.value)
    batch = len(next(iter(inputs.values())))
    prompts = make_prompts(inputs, batch, bos_id)
    width, length = len(targets) // batch, targets.shape[1]
    context = session.open(variables, inputs)
    first, context, memory = session.prefill(context, prompts, prompts.tokens.shape[1] + length)
    logits = jnp.repeat(first, width, axis=0)[:, None]
    if length > 1:
        memory = session.expand(memory, width)
        others, _ = session.take(context, memory, targets[:, :-1], widened(memory.step, length - 1))
        logits = jnp.concatenate([logits, others], axis=1)
    return target_log_probs(logits, targets, real)
