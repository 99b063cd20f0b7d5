"""The loop in pieces, each compiled on its own, for whoever wants to look in between."""

from __future__ import annotations

import functools
from typing import Any

import jax

from flaxformer.decoding.loop import run
from flaxformer.decoding.task import Data, Plan, make_loop


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(plan: Plan, checks: bool, data: Data) -> Any:
    """The running batch behind its prompts and first tokens."""
    return make_loop(plan, data, checks).begin(data.variables, data.inputs, data.rng)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def go_on(plan: Plan, checks: bool, steps: int, data: Data, running: Any) -> Any:
    """At most `steps` further steps."""
    return run(make_loop(plan, data, checks), running, steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def finish(plan: Plan, checks: bool, data: Data, running: Any) -> Any:
    """The results."""
    return make_loop(plan, data, checks).finish(running)
