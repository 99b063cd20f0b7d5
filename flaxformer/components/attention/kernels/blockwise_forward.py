"""The forward pass of the blockwise kernel."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from flaxformer.components.attention.blocks import cut, indices
from flaxformer.components.attention.kernels.program import (
    Program,
    Setting,
    heads_first,
    loop,
    product,
    query_rows,
    run_programs,
    scaled,
)
from flaxformer.types import Array


def forward(setting: Setting, query, key, value, bias, sinks, data) -> tuple[Array, Array]:
    """Output `[B T N V]` and log-sum-exp `[B N T]`, +inf in rows that see nothing."""
    batch, length, num_heads, _ = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    output = jnp.zeros((batch, length, num_heads, value.shape[-1]), query.dtype)
    log_sum_exp = jnp.zeros((batch, num_heads, length), wide)
    grid = setting.grid

    def run(program: Program, carry):
        keys, values = (heads_first(program, x, setting.kv_heads) for x in (key, value))  # [b k S H]

        def query_block(i, carry):
            output, log_sum_exp = carry
            x, lse = _attend_query_block(program, i, query, keys, values, sinks)
            place = program.place(i, 0)
            output = lax.dynamic_update_slice(
                output, x.astype(output.dtype), indices(place.row, place.query, place.head, 0)
            )
            log_sum_exp = lax.dynamic_update_slice(log_sum_exp, lse, indices(place.row, place.head, place.query))
            return output, log_sum_exp

        return loop(grid.query_count, query_block, carry)

    return run_programs(setting, batch, num_heads, bias, data, run, (output, log_sum_exp))


def _attend_query_block(program: Program, i, query, keys, values, sinks) -> tuple[Array, Array]:
    """One block of queries against all keys it visits: `[b q n V]` and `[b n q]`."""
    setting, grid = program.setting, program.setting.grid
    rows, heads, queries, width = setting.rows, setting.heads, grid.query_size, values.shape[-1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    q = scaled(setting, query_rows(program, query, i))

    def visit(j, carry, careful):
        highest, total, x = carry  # [b n q], [b n q], [b k g*q V]
        place = program.place(i, j)
        logits, _ = program.logits(q, cut(keys, place.key, place.keys, axis=2))
        if careful:
            logits, number = program.add_careful(logits, place, q), 0.0
        else:
            number = program.number(place, q)
        new_highest = jnp.maximum(highest, logits.max(-1) + number)
        weights = jnp.exp(logits - (new_highest - number)[..., None])
        shrink = jnp.exp(highest - new_highest)
        total = total * shrink + weights.sum(-1)
        weights = program.drop(weights, place).reshape(rows, setting.kv_heads, -1, grid.key_size)
        more = product("bkrs,bksv->bkrv", weights, cut(values, place.key, place.keys, axis=2), setting.precision)
        return new_highest, total, x * shrink.reshape(*x.shape[:-1], 1) + more

    highest = jnp.full((rows, heads, queries), jnp.finfo(wide).min, wide)
    total = jnp.zeros_like(highest)
    if sinks is not None:
        sinks = cut(sinks.astype(wide), program.kv_head * setting.groups, heads)
        highest = jnp.maximum(highest, sinks[:, None])
        total = jnp.exp(sinks[:, None] - highest)
    x = jnp.zeros((rows, setting.kv_heads, setting.groups * queries, width), wide)
    highest, total, x = program.loop(0, i, visit, (highest, total, x))
    blind = total == 0
    total = jnp.where(blind, 1, total)
    x = x.reshape(rows, heads, queries, width) / total[..., None]
    return x.swapaxes(1, 2), jnp.where(blind, jnp.inf, highest + jnp.log(total))
