"""What `generate` and `stream` are asked to do, checked, and split into what is compiled and what is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxformer.decoding.constraints.base import Constrained, Constraint
from flaxformer.decoding.drafts import Draft, Rules
from flaxformer.decoding.guidance import Guidance, GuidedSession, both
from flaxformer.decoding.limits import check_ids, check_lengths, known_ids
from flaxformer.decoding.loop import Loop
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prefix import Prefix, check_prefix, session_behind
from flaxformer.decoding.prompts import longest_prompt, read_inputs, readable
from flaxformer.decoding.speculative import SpeculativeLoop
from flaxformer.decoding.static import Static
from flaxformer.decoding.strategies.base import Request, Strategy
from flaxformer.decoding.strategies.rows import RowStrategy
from flaxformer.types import Array, PRNGKey


class Plan(NamedTuple):
    """What is compiled: anything else may change from call to call."""

    model: Static
    request: Request
    bos_id: int | None


class Data(NamedTuple):
    """What is given to the compiled function; strategies, constraints and drafts bring their own static parts."""

    variables: Mapping[str, Any]
    inputs: Mapping[str, Array]
    rng: PRNGKey
    strategy: Strategy
    constraints: tuple[Constraint, ...]
    draft: Draft | None
    scale: Any
    prefix: Prefix | None = None


class Task(NamedTuple):
    plan: Plan
    data: Data


def make_loop(plan: Plan, data: Data, checks: bool = False) -> Loop | SpeculativeLoop:
    """The loop that does it. Runs inside of jit."""
    session: Any = session_behind(data.prefix, plan.model.value, data.strategy.wants_hidden)
    if data.scale is not None:
        session = GuidedSession(session, data.scale)
    if data.draft is not None:
        assert isinstance(data.strategy, RowStrategy)
        rules = Rules(data.strategy, data.constraints, plan.request)
        return SpeculativeLoop(session, rules, data.draft, plan.bos_id, checks)
    strategy = Constrained(data.strategy, data.constraints) if data.constraints else data.strategy
    return Loop(session, strategy, plan.request, plan.bos_id, checks)


def prepare(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    strategy: Strategy,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    pad_id: int,
    bos_id: int | None,
    rng: PRNGKey | None,
    constraints: Sequence[Constraint],
    draft: Draft | None,
    guidance: Guidance | None,
    prefix: Prefix | None,
) -> Task:
    """The task; the arguments are those of `generate`.

    Raises:
      ValueError: for what cannot work, as far as it is known before anything runs.
    """
    session = ModelSession(model)
    constraints = tuple(constraints)
    _check_kinds(strategy, constraints, draft, session)
    if not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 1.")
    if bos_id is None and session.has_encoder:
        raise ValueError("bos_id is None; expected the id that this encoder-decoder's decoder starts from, often 0.")
    bos_id = bos_id if prefix is None else None  # which the prefix starts with
    arrays = read_inputs(inputs, session.has_encoder, pad_id, bos_id)
    batch = len(next(iter(arrays.values())))
    if prefix is not None:
        check_prefix(prefix, arrays, guidance is not None, strategy.wants_hidden)
    if guidance is not None:
        others = read_inputs(guidance.inputs, session.has_encoder, pad_id, bos_id)
        arrays = both(arrays, others, getattr(model, "padding_id", 0) or 0)
    for part in (strategy, *constraints):
        part.check(batch)
    vocabulary = session.vocabulary_sizes(variables).get("decoder")
    if vocabulary is not None:
        for part in constraints:
            part.check_vocabulary(vocabulary)
    check_ids(session, variables, bos_id, known_ids(arrays))
    extra = max_new_tokens - (not strategy.reads_last) + (0 if draft is None else draft.length)
    before = 0 if prefix is None else prefix.length
    check_lengths(session, variables, arrays, before + longest_prompt(arrays, bos_id), int(extra))
    return Task(
        Plan(Static(model), Request(batch, int(max_new_tokens), _ends(eos_id), int(pad_id)), bos_id),
        Data(
            variables=readable(variables),
            inputs=arrays,
            rng=jax.random.PRNGKey(0) if rng is None else rng,
            strategy=strategy,
            constraints=constraints,
            draft=draft,
            scale=None if guidance is None else guidance.scale,
            prefix=prefix,
        ),
    )


def _ends(eos_id: int | Sequence[int]) -> int | tuple[int, ...]:
    ids = np.asarray(eos_id)
    if ids.ndim > 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"eos_id is {eos_id!r}; expected the id of the token that ends a sequence, or several.")
    return int(ids) if ids.ndim == 0 else tuple(dict.fromkeys(ids.tolist()))


def _check_kinds(strategy: Any, constraints: tuple[Any, ...], draft: Any, session: ModelSession) -> None:
    if not isinstance(strategy, Strategy):
        raise ValueError(f"strategy is {strategy!r}; expected a strategy object such as Greedy() or BeamSearch(4).")
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise ValueError(f"constraints holds {constraint!r}; expected constraint objects such as MinLength(3).")
    if draft is None:
        return
    if not isinstance(draft, Draft):
        raise ValueError(f"draft is {draft!r}; expected DraftModel(model, variables) or PromptLookup().")
    if not isinstance(strategy, RowStrategy):
        raise ValueError(
            f"draft was given with {type(strategy).__name__}; expected Greedy() or Sample(...), which write each row "
            "by itself. Leave the draft out."
        )
    draft.check(session.has_encoder)
