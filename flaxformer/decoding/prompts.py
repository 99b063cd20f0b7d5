"""What `generate` is given, checked and brought into one form.

Glossary:

* *prompt*: tokens the decoder reads before it writes, padded on either side, `[B P]`.
* *start token*: the BOS that is put in front of every prompt, empty ones included, unless `bos_id` is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Int

from flaxformer.types import Array

ENCODER_TOKENS = "encoder_input_tokens"
PROMPT_TOKENS = "decoder_prompt_tokens"
PREFIX = "decoder_causal_attention"
VALID = "valid"
_NOT_READ = ("cache", "cross_cache", "intermediates")


@flax.struct.dataclass
class Prompts:
    """What the decoder reads first: every row ends in the last column.

    Attributes:
      tokens: `[B P]`.
      valid: `[#B P]`, True at real tokens; one row when all rows are full.
      lengths: `[B]`, real tokens without the start token.
      prefix: `[B P]`, True where a prefix language model's tokens all see each other; None in causal models.
    """

    tokens: Int[Array, "B P"]
    valid: Bool[Array, "#B P"]
    lengths: Int[Array, " B"]
    prefix: Bool[Array, "B P"] | None = None

    def first(self, rows: int) -> Prompts:
        """The first rows."""
        return jax.tree.map(lambda x: x[:rows], self)


def readable(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections that decoding reads: no caches of before, no names of axes."""
    return {name: x for name, x in variables.items() if name not in _NOT_READ and not name.endswith("_axes")}


def read_inputs(inputs: Any, has_encoder: bool, pad_id: int, bos_id: int | None) -> dict[str, Array]:
    """The arrays of `inputs` under their names, checked as far as they are concrete.

    `valid` is there when it was given, or when some row is not full.

    Raises:
      ValueError: for unknown or missing names, wrong ranks, empty batches, holes in prompts.
    """
    main = ENCODER_TOKENS if has_encoder else PROMPT_TOKENS
    named = dict(inputs) if isinstance(inputs, Mapping) else {main: inputs}
    known = {PROMPT_TOKENS, VALID, ENCODER_TOKENS if has_encoder else PREFIX}
    if main not in named or not set(named) <= known or (VALID in named and PROMPT_TOKENS not in named):
        raise ValueError(
            f"inputs has the entries {sorted(named)}; expected '{main}' and, for "
            f"{'an encoder-decoder' if has_encoder else 'a decoder-only model'}, optionally {sorted(known - {main})} "
            f"('{VALID}' belongs to '{PROMPT_TOKENS}'). Leave the others out."
        )
    shapes = {name: np.shape(x) for name, x in named.items()}
    ranks = {name: (2, 3) if name == ENCODER_TOKENS else (2,) for name in shapes}  # an encoder may read [B S channels]
    if any(len(shape) not in ranks[name] for name, shape in shapes.items()) or len({s[0] for s in shapes.values()}) > 1:
        raise ValueError(f"inputs have the shapes {shapes}; expected [batch, length] with one batch size for all.")
    if shapes[main][0] == 0 or (shapes[main][1] == 0 and (has_encoder or bos_id is None)):
        raise ValueError(f"'{main}' has shape {shapes[main]}; expected at least one row and one column.")
    if PROMPT_TOKENS in named:
        named |= _read_prompt(named[PROMPT_TOKENS], named.pop(VALID, None), pad_id, bos_id)
    return {name: x for name, x in named.items() if x is not None}


def check_integers(name: str, ids: Any) -> None:
    """Refuses ids that are no integers."""
    kind = getattr(ids, "dtype", None) or np.asarray(ids).dtype
    if not np.issubdtype(kind, np.integer):
        raise ValueError(f"'{name}' is of type {kind}; expected integers, the ids of tokens.")


def _read_prompt(tokens: Any, valid: Any, pad_id: int, bos_id: int | None) -> dict[str, Any]:
    check_integers(PROMPT_TOKENS, tokens)
    if valid is not None and np.shape(valid) != np.shape(tokens):
        raise ValueError(
            f"'{VALID}' has shape {np.shape(valid)}; expected {np.shape(tokens)}, the shape of '{PROMPT_TOKENS}'."
        )
    if isinstance(tokens, Tracer) or isinstance(valid, Tracer):
        return {PROMPT_TOKENS: tokens, VALID: tokens != pad_id if valid is None else valid}
    known = np.asarray(tokens) != pad_id if valid is None else np.asarray(valid, bool)
    edges = np.abs(np.diff(known.astype(np.int8), axis=1, prepend=0, append=0)).sum(axis=1)
    if np.any(edges > 2):
        raise ValueError(
            f"row {int(np.argmax(edges))} of '{PROMPT_TOKENS}' has padding (pad_id={pad_id}) between its tokens; "
            f"expected it at the ends only. If the id is a real token here, say which are real with '{VALID}'."
        )
    if bos_id is None and not np.all(known.any(axis=1)):
        raise ValueError(
            f"row {int(np.argmin(known.any(axis=1)))} of '{PROMPT_TOKENS}' is empty and bos_id is None; "
            "expected at least one token to start from. Give a bos_id or a prompt."
        )
    return {PROMPT_TOKENS: tokens, VALID: None if known.all() and valid is None else known}


def longest_prompt(inputs: Mapping[str, Any], bos_id: int | None) -> int:
    """The number of tokens the decoder reads first, the start token included: of the longest row, where known."""
    valid, tokens = inputs.get(VALID), inputs.get(PROMPT_TOKENS)
    start = 0 if bos_id is None else 1
    if tokens is None:
        return start
    if valid is None or isinstance(valid, Tracer):
        return np.shape(tokens)[1] + start
    return int(np.asarray(valid).sum(axis=1).max()) + start


def make_prompts(inputs: Mapping[str, Array], batch: int, bos_id: int | None) -> Prompts:
    """The prompts with their start token, every row moved to the right end. Static shapes: runs inside of jit."""
    if PROMPT_TOKENS not in inputs:
        start = jnp.full((batch, 1), 0 if bos_id is None else bos_id, jnp.int32)
        return Prompts(start, jnp.ones((1, 1), bool), jnp.zeros((batch,), jnp.int32))
    tokens = jnp.asarray(inputs[PROMPT_TOKENS], jnp.int32)
    prefix = jnp.asarray(inputs[PREFIX], bool) if PREFIX in inputs else None
    length = tokens.shape[1]
    if VALID not in inputs:
        prompts = Prompts(tokens, jnp.ones((1, length), bool), jnp.full((batch,), length, jnp.int32), prefix)
    else:
        prompts = _right_aligned(tokens, jnp.asarray(inputs[VALID], bool), prefix)
    return prompts if bos_id is None else _started(prompts, bos_id)


def _right_aligned(tokens: Array, valid: Array, prefix: Array | None) -> Prompts:
    columns = jnp.arange(tokens.shape[1])
    past = jnp.argmax(valid[:, ::-1], axis=1)[:, None]  # [B 1], columns behind the last real token
    move = lambda x: jnp.take_along_axis(x, (columns - past) % len(columns), axis=1)  # noqa: E731
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
    valid = columns >= len(columns) - lengths[:, None]
    return Prompts(move(tokens), valid, lengths, None if prefix is None else move(prefix) & valid)


def _started(prompts: Prompts, bos_id: int) -> Prompts:
    """The prompts with `bos_id` right in front of each row's first token."""
    tokens, valid = (jnp.pad(x, ((0, 0), (1, 0))) for x in (prompts.tokens, prompts.valid))
    first = jnp.argmax(valid, axis=1)[:, None] - 1  # [#B 1]
    starts = jnp.arange(valid.shape[1]) == jnp.where(jnp.any(valid, axis=1, keepdims=True), first, valid.shape[1] - 1)
    prefix = None if prompts.prefix is None else jnp.pad(prompts.prefix, ((0, 0), (1, 0))) | starts
    return Prompts(jnp.where(starts, bos_id, tokens), valid | starts, prompts.lengths, prefix)
