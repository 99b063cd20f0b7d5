"""Exact attention in linear memory, in plain JAX, on any platform.

Scores exist one block at a time. The forward pass keeps a running maximum, denominator and weighted sum per query, and
saves only the output and the logarithm of the denominator. The backward pass makes each block of weights again from
those. `plan` says which blocks are visited and which of them need mask and bias.

Per program (a chunk of rows and key heads; see `plan.chunk_for`):

    forward:  for each block of queries i          backward: for each block of keys j
                for each visited block of keys j               for each visited block of queries i
                  update maximum, sum, output                    dV_j, dK_j (kept at hand), dQ_i (added in place)

Source: Milakov & Gimelshein 2018 (running softmax), https://arxiv.org/abs/1805.02867; Rabe & Staats 2021 (linear
memory), https://arxiv.org/abs/2112.05682; Dao et al. 2022 (FlashAttention), https://arxiv.org/abs/2205.14135. The loops
here are ordinary XLA loops, their bounds may depend on data (skipping of padding and segments), and biases are built
and differentiated per block.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases, plan, request
from flaxformer.components.attention.kernels.blockwise_backward import backward
from flaxformer.components.attention.kernels.blockwise_forward import forward
from flaxformer.components.attention.kernels.program import Data, Setting
from flaxformer.types import Array


def attend_blockwise(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    return_residuals: bool = False,
    query_block: int | None = None,
    key_block: int | None = None,
    **options: Any,
) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """Attends block by block; what it computes is `attend_reference`.

    Args:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K; keys are not repeated.
      value: `[B S K V]`.
      return_residuals: return also the logarithm of the softmax's denominator, `[B N T]`.
      query_block: queries per block. None: see `plan.grid_for`.
      key_block: keys per block, likewise.
      **options: `mask`, `bias`, `scale`, `softcap`, `sinks`, `dropout_rate`, `dropout_rng`, `broadcast_dropout` and
        `precision`, see `flaxformer.components.attention.backends.attend`.

    Returns:
      `[B T N V]` in the query's dtype. A row that may see nothing is zero, and so are its gradients.

    It can be differentiated once, in reverse; products are summed in float32, and on a CPU computed in it.
    """
    asked = request.check(query, key, value, **options)
    batch, length, num_heads, _ = query.shape
    if 0 in (batch, length, num_heads, key.shape[1], key.shape[3], value.shape[3]):
        output, log_sum_exp = _nothing(asked)
    else:
        output, log_sum_exp = _attend_padded(asked, query_block, key_block)
    return (output, log_sum_exp) if return_residuals else output


def _nothing(asked: request.Request) -> tuple[Array, Array]:
    """The result when there is no key or no query at all."""
    batch, length, num_heads, _ = asked.query.shape
    wide = jnp.promote_types(asked.query.dtype, jnp.float32)
    sinks = jnp.full(num_heads, -jnp.inf, wide) if asked.sinks is None else asked.sinks.astype(wide)
    log_sum_exp = jnp.broadcast_to(sinks[None, :, None], (batch, num_heads, length))
    return jnp.zeros((batch, length, num_heads, asked.value.shape[-1]), asked.query.dtype), log_sum_exp


def _attend_padded(asked: request.Request, query_block: int | None, key_block: int | None) -> tuple[Array, Array]:
    """Makes lengths multiples of the blocks and the plan of visits, and runs the loops."""
    batch, length, num_heads, _ = asked.query.shape
    key_length, kv_heads = asked.key.shape[1:3]
    grid = plan.grid_for(length, key_length, num_heads // kv_heads, query_block, key_block)
    padded = grid.query_count * grid.query_size, grid.key_count * grid.key_size
    mask = asked.mask
    if padded[1] > key_length:
        mask = masks.combine(mask, masks.KeyLengths(np.array([key_length])))
    mask = mask and mask.pad(*padded)
    bias = asked.bias and asked.bias.pad(*padded)
    groups = num_heads // kv_heads
    rows, heads = plan.chunk_for(batch, kv_heads, groups * grid.query_size * grid.key_size)
    kinds = plan.kinds(grid, mask, bias, rows)
    values, others, structure = biases.split(bias)
    setting = Setting(
        grid=grid,
        length=length,
        rows=rows,
        kv_heads=heads,
        groups=groups,
        plain=plan.may_hold(kinds, plan.PLAIN) and (bias is None or bool(bias.uniform(grid).any())),
        careful=plan.may_hold(kinds, plan.CAREFUL),
        scale=asked.scale,
        softcap=asked.softcap,
        dropout_rate=asked.dropout_rate,
        broadcast_dropout=asked.broadcast_dropout,
        precision=asked.precision,
        bias=structure,
    )
    visits = plan.visits(kinds), plan.visits(kinds.swapaxes(1, 2))
    data = Data(mask, others, asked.seeds, visits)
    query, key, value = (
        x if x.shape[1] == size else jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0)))
        for x, size in ((asked.query, padded[0]), (asked.key, padded[1]), (asked.value, padded[1]))
    )
    output, log_sum_exp = cast(tuple[Array, Array], _attend(setting, query, key, value, values, asked.sinks, data))
    return output[:, :length], log_sum_exp[:, :, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting: Setting, query, key, value, bias, sinks, data: Data) -> tuple[Array, Array]:
    """Output and log-sum-exp; `bias` is the list of its parameters."""
    output, log_sum_exp = forward(setting, query, key, value, bias, sinks, data)
    return output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)


def _attend_forward(setting: Setting, query, key, value, bias, sinks, data):
    """The forward pass under differentiation; arguments come with a flag that says whether a gradient is wanted."""
    bias_wanted = any(x.perturbed for x in jax.tree.leaves(bias, is_leaf=_is_primal))
    query, key, value, bias, sinks, data = jax.tree.map(
        lambda x: x.value, (query, key, value, bias, sinks, data), is_leaf=_is_primal
    )
    output, log_sum_exp = forward(setting, query, key, value, bias, sinks, data)
    kept = (query, key, value, bias, sinks, data, output, log_sum_exp, _Static(bias_wanted))
    return (output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)), kept


def _attend_backward(setting: Setting, kept, cotangents):
    """The gradients of both results; a change of the log-sum-exp enters like one of the weighted sum."""
    query, key, value, bias, sinks, data, output, log_sum_exp, bias_wanted = kept
    d_output, d_log_sum_exp = cotangents
    if _is_zero(d_output):
        d_output = jnp.zeros(output.shape, output.dtype)
    wide = log_sum_exp.dtype
    delta = jnp.einsum("btnv,btnv->bnt", d_output, output, preferred_element_type=wide)
    if not _is_zero(d_log_sum_exp):
        delta -= jnp.where(jnp.isinf(log_sum_exp), 0, d_log_sum_exp)
    d_query, d_key, d_value, d_bias = backward(
        setting, query, key, value, bias, data, d_output, log_sum_exp, delta, bias_wanted.value
    )
    d_bias = [g.astype(x.dtype) for g, x in zip(d_bias, bias, strict=True)] if bias_wanted.value else None
    d_sinks = None
    if sinks is not None:
        weights = jnp.exp(sinks.astype(wide)[:, None] - log_sum_exp)
        d_sinks = -(weights * delta).sum((0, 2)).astype(sinks.dtype)
    return d_query, d_key, d_value, d_bias, d_sinks, None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


class _Static:
    """A value that travels with arrays but is known while tracing."""

    def __init__(self, value: Any):
        self.value = value


jax.tree_util.register_pytree_node(_Static, lambda x: ((), x.value), lambda value, _: _Static(value))


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)
