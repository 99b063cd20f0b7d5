"""Items that have ended leave the batch, so that the others go on at the cost of fewer rows.

A compiled loop computes all rows of its batch to the end. Here it comes back to the host every few steps; once no more
than half of the items still write, these are gathered into a batch of half the size or less, for which the loop is
compiled too (sizes are powers of two, so that there are few). At the end everything is put back in its place.

Nothing here knows what a strategy, a cache or a constraint keeps: which axis of an array counts items is seen by asking
for its shape with fewer of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from flaxformer.decoding.buckets import bucket_size
from flaxformer.decoding.checks import Fault
from flaxformer.decoding.driving import begin, finish, go_on
from flaxformer.decoding.strategies.base import Generated
from flaxformer.decoding.task import Data, Plan, make_loop
from flaxformer.types import Array


def generate_shrinking(plan: Plan, data: Data, checks: bool, every: int) -> tuple[Generated, Fault | None]:
    """What `generate` returns, and a fault, in steps of `every`."""
    running = begin(plan, checks, data)
    whole, held = plan, []
    inputs, data = data.inputs, data._replace(inputs={})
    while True:
        done, going, fault = jax.device_get(_look(plan, checks, data, running))
        if done or (fault is not None and fault.step >= 0):
            break
        size = max(bucket_size(int(going.sum())), 1 if data.draft is None else 2)  # a row alone has fewer spare slots
        if 0 < size <= plan.request.batch // 2:
            items = np.argsort(~going, kind="stable")[:size]  # those that go on, and others to fill up
            smaller = plan._replace(request=dataclasses.replace(plan.request, batch=size))
            constraints = tuple(constraint.of_items(items) for constraint in data.constraints)
            prefix = None if data.prefix is None else data.prefix.of_items(items)
            kept = data._replace(strategy=data.strategy.of_items(items), constraints=constraints, prefix=prefix)
            like = _shapes(smaller, checks, kept, inputs, size)
            now = _shapes(plan, checks, data, inputs, plan.request.batch)
            axes = [_item_axis(*pair) for pair in zip(jax.tree.leaves(now), jax.tree.leaves(like), strict=True)]
            held.append((running, items, axes))
            running = _take(running, items, axes, like, plan.request.batch)
            plan, data = smaller, kept
        running = go_on(plan, checks, every, data, running)
    for before, items, axes in reversed(held):
        running = _put(before, running, items, axes)
        fault = None if fault is None else _renamed(fault, items, data.strategy.width)
    return finish(whole, checks, data, running), fault


def _renamed(fault: Fault, items: Int[np.ndarray, " b"], width: int) -> Fault:
    """The fault of a row of these items, in the larger batch that they came from."""
    item, row = divmod(int(fault.row), width)
    return Fault(fault.step, jnp.asarray(items[item] * width + row))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(plan: Plan, checks: bool, data: Data, running: Any) -> tuple[Array, Bool[Array, " B"], Fault | None]:
    loop = make_loop(plan, data, checks)
    return loop.done(running), loop.going(running), running.fault


def _shapes(plan: Plan, checks: bool, data: Data, inputs: Any, batch: int) -> Any:
    """The shapes of a running batch of that many items, static fields included."""
    first = {name: jax.ShapeDtypeStruct((batch, *np.shape(x)[1:]), jnp.result_type(x)) for name, x in inputs.items()}
    return jax.eval_shape(functools.partial(begin, plan, checks), data._replace(inputs=first))


def _item_axis(more: Any, fewer: Any) -> int:
    """The axis that counts items, -1 if none does."""
    differing = [axis for axis, sizes in enumerate(zip(more.shape, fewer.shape, strict=True)) if len(set(sizes)) > 1]
    return differing[0] if differing else -1


def _take(running: Any, items: Int[np.ndarray, " b"], axes: list[int], like: Any, batch: int) -> Any:
    """The running batch with the given items, in the structure of `like`."""
    leaves = jax.tree.leaves(running)
    taken = [
        x if axis < 0 else jnp.take(x, _rows(items, x.shape[axis] // batch), axis=axis)
        for x, axis in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), taken)


def _put(before: Any, after: Any, items: Int[np.ndarray, " b"], axes: list[int]) -> Any:
    """`before` with the items of `after` in their places; what counts no items is taken from `after`."""

    def put(old: Array, new: Array, axis: int) -> Array:
        if axis < 0:
            return new
        rows = _rows(items, new.shape[axis] // len(items))
        return jnp.moveaxis(jnp.moveaxis(old, axis, 0).at[rows].set(jnp.moveaxis(new, axis, 0)), 0, axis)

    leaves = [put(*x) for x in zip(jax.tree.leaves(before), jax.tree.leaves(after), axes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(before), leaves)


def _rows(items: Int[np.ndarray, " b"], width: int) -> Int[np.ndarray, " r"]:
    return (items[:, None] * width + np.arange(width)).reshape(-1)
