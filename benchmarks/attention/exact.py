"""The results in float64, against which errors are taken.

The definition is computed for the first key head and the queries that read it, a slice of queries at a time, so that it
takes little memory and time at any length. Variants with mathematics of their own are run in float64 themselves, as
long as their scores are few.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention.contenders import DEFINITION, Contender
from benchmarks.attention.workload import Arrays, Workload
from flaxformer.components.attention import masks
from flaxformer.components.attention.blocks import Place
from flaxformer.components.attention.kernels import biases
from flaxformer.components.attention.kernels.reference import attend_reference

SLICE = 512  # queries at a time
MOST_SCORES = 2**25  # of a variant that runs in float64 as a whole

Outcome = dict[str, Any]


def outcome(workload: Workload, contender: Contender | None, against: str | None, arrays: Arrays) -> Outcome | None:
    """Output, and gradients where the program has them, of the first key head; of all heads for a variant.

    Args:
      workload: what is computed.
      contender: who is to be run in float64 where the error is taken against itself.
      against: see `contenders.Contender.exact`.
      arrays: of the workload.

    Returns:
      name -> array, or None where an error would say nothing or cost too much.
    """
    if against is None:
        return None
    if against == DEFINITION or contender is None:
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, _definition(workload, arrays))
    if workload.batch * workload.heads * workload.queries * workload.length > MOST_SCORES:
        return None
    inputs, cotangent = contender.inputs(workload, arrays), arrays["cotangent"]
    attend = functools.partial(contender.attend, workload)
    with jax.enable_x64(True):
        try:
            found = jax.jit(run(attend, workload))(*jax.tree.map(_widen, inputs), _widen(cotangent))
        except (ValueError, TypeError):  # it is written for its own dtype
            return None
        return jax.tree.map(np.asarray, found)


def run(attend: Any, workload: Workload) -> Any:
    """What a program computes, as a function of what learns, what is given, and the output's cotangent."""

    def forward(learned: Any, given: Any, cotangent: Any) -> Outcome:
        return {"output": attend(learned, given)}

    def backward(learned: Any, given: Any, cotangent: Any) -> Outcome:
        output, pull = jax.vjp(lambda learned: attend(learned, given), learned)
        return {"output": output, **pull(cotangent.reshape(output.shape))[0]}

    return backward if workload.program == "backward" else forward


def error(found: Outcome, exact: Outcome) -> float:
    """The greatest difference of any output or gradient, relative to the greatest entry of the exact one."""
    return max(_difference(found[name], exact[name]) for name in exact if name in found)


def _difference(found: Any, exact: Any) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return max((_array_difference(np.asarray(a, np.float64), b) for a, b in pairs), default=0.0)


def _array_difference(found: np.ndarray, exact: np.ndarray) -> float:
    found = found[tuple(slice(size) for size in exact.shape)]  # the heads that were computed exactly
    return float(
        np.abs(found - exact).max(initial=0.0) / max(np.abs(exact).max(initial=0.0), np.finfo(np.float64).tiny)
    )


def _definition(workload: Workload, arrays: Arrays) -> Outcome:
    groups = workload.heads // workload.key_heads
    few = {"query": groups, "key": 1, "value": 1, "cotangent": groups}
    x = {name: jnp.asarray(arrays[name][:, :, :heads], jnp.float64) for name, heads in few.items()}
    mask, bias = workload.make_mask(arrays), _first_heads(workload.make_bias(arrays), groups)
    learned = {"key": x["key"], "value": x["value"], "bias": bias}
    total = jax.tree.map(jnp.zeros_like, learned)
    parts: dict[str, list[Any]] = {"output": [], "query": []}
    for start in range(0, workload.queries, SLICE):
        rows = slice(start, min(start + SLICE, workload.queries))
        output, gradients = _rows(
            workload, mask, learned, x["query"][:, rows], x["cotangent"][:, rows], jnp.int32(start)
        )
        parts["output"].append(output)
        if gradients is not None:
            total = jax.tree.map(jnp.add, total, gradients[0])
            parts["query"].append(gradients[1])
    found = {name: jnp.concatenate(slices, axis=1) for name, slices in parts.items() if slices}
    if workload.program != "backward":
        return found
    return found | {name: value for name, value in total.items() if name != "bias" or workload.bias_learns}


@functools.partial(jax.jit, static_argnums=0)
def _rows(workload: Workload, mask: masks.Mask | None, learned: Any, query: Any, cotangent: Any, start: Any) -> Any:
    size, keys = query.shape[1], workload.length
    visible = None if mask is None else mask.block(start, size, 0, keys)

    def attend(learned: Any, query: Any) -> Any:
        bias = learned["bias"]
        place = Place(0, workload.batch, 0, query.shape[2], start, size, 0, keys)
        added = None if bias is None else bias.block(place)
        return attend_reference(query, learned["key"], learned["value"], mask=visible, bias=added)

    output, pull = jax.vjp(attend, learned, query)
    return output, pull(cotangent) if workload.program == "backward" else None


def _first_heads(bias: biases.Bias | None, heads: int) -> biases.Bias | None:
    """The bias of the first heads, in float64."""
    return jax.tree.map(lambda x: _widen(x[:, :heads] if x.ndim == 4 else x[:heads]) if _floating(x) else x, bias)


def _widen(x: Any) -> Any:
    return jnp.asarray(x, jnp.float64) if _floating(x) else x


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
