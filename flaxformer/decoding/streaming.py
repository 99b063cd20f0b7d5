"""`stream`: tokens as they come."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from flaxformer.decoding.constraints.base import Constraint
from flaxformer.decoding.drafts import Draft
from flaxformer.decoding.driving import begin, go_on
from flaxformer.decoding.guidance import Guidance
from flaxformer.decoding.prefix import Prefix
from flaxformer.decoding.strategies.base import Strategy
from flaxformer.decoding.task import Data, Plan, make_loop, prepare
from flaxformer.types import Array, PRNGKey


class Piece(NamedTuple):
    """What was written since the piece before.

    Attributes:
      tokens: `[B n c]` int32: of each row the new tokens, then `pad_id`.
      lengths: `[B n]` int32, how many of them are new; 0 in rows that have ended.
    """

    tokens: Int[np.ndarray, "B n c"]
    lengths: Int[np.ndarray, "B n"]


def stream(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    *,
    strategy: Strategy,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    pad_id: int = 0,
    bos_id: int | None = 0,
    rng: PRNGKey | None = None,
    constraints: Sequence[Constraint] = (),
    draft: Draft | None = None,
    guidance: Guidance | None = None,
    prefix: Prefix | None = None,
    checks: bool = False,
    every: int = 8,
) -> Iterator[Piece]:
    """Writes as `generate` does, and yields what is certain, a device call at a time.

    All pieces of a row, one behind the other, are the row that `generate` writes; samples of one item keep their order
    instead of being sorted. Nothing runs ahead of the caller: whoever stops asking stops the work.

        for tokens, lengths in stream(model, variables, inputs, strategy=Greedy(), max_new_tokens=64, eos_id=1):
            ...

    Args:
      model, variables, inputs, strategy, max_new_tokens, eos_id, pad_id, bos_id, rng, constraints, draft, guidance,
        prefix, checks: as in `generate`.
      every: steps per device call.

    Returns:
      An iterator of pieces.

    Raises:
      ValueError: at once, for what `generate` refuses, for strategies that choose among whole sequences, such as beam
        search, and for `every` below 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected at least 1 step per device call.")
    task = prepare(
        model,
        variables,
        inputs,
        strategy,
        max_new_tokens,
        eos_id,
        pad_id,
        bos_id,
        rng,
        constraints,
        draft,
        guidance,
        prefix,
    )
    if type(strategy).so_far is Strategy.so_far:
        strategy.so_far(None)  # says why not
    return _pieces(task.plan, task.data, checks, every)


def _pieces(plan: Plan, data: Data, checks: bool, every: int) -> Iterator[Piece]:
    running = begin(plan, checks, data)
    data = data._replace(variables={}, inputs={})  # the running batch holds what it needs of them
    seen = None
    while True:
        tokens, counts, done, fault = jax.device_get(_look(plan, checks, data, running))
        if fault is not None:
            fault.report(data.strategy.width)
        seen = np.zeros_like(counts) if seen is None else seen
        if np.any(counts > seen):
            yield _piece(tokens, seen, counts, plan)
        if done:
            return
        seen = counts
        running = go_on(plan, checks, every, data, running)


def _piece(tokens: np.ndarray, seen: np.ndarray, counts: np.ndarray, plan: Plan) -> Piece:
    new = counts - seen
    ahead = np.arange(new.max())
    columns = np.minimum(seen[:, None] + ahead, tokens.shape[1] - 1)
    picked = np.where(ahead < new[:, None], np.take_along_axis(tokens, columns, axis=1), plan.request.pad_id)
    batch = plan.request.batch
    return Piece(picked.reshape(batch, -1, len(ahead)), new.reshape(batch, -1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(plan: Plan, checks: bool, data: Data, running: Any) -> Any:
    loop = make_loop(plan, data, checks)
    return *loop.so_far(running), loop.done(running), running.fault
