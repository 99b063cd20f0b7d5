"""The backward pass of the blockwise kernel."""

from __future__ import annotations

from typing import NamedTuple, cast

import jax.numpy as jnp
from jax import lax

from flaxformer.components.attention.blocks import cut, indices
from flaxformer.components.attention.kernels import biases
from flaxformer.components.attention.kernels.program import (
    Program,
    Setting,
    fold,
    heads_first,
    key_rows,
    loop,
    product,
    run_programs,
    scaled,
    scales_query,
    unfold,
)
from flaxformer.types import Array


def backward(setting: Setting, query, key, value, bias, data, d_output, log_sum_exp, delta, bias_wanted: bool):
    """Gradients of query, key, value and the bias' parameters."""
    batch, _, num_heads, _ = query.shape
    grid, groups = setting.grid, setting.groups
    bias_zero = cast(biases.Bias, biases.join(bias, data.bias, setting.bias)).zero_gradient() if bias_wanted else []

    def run(program: Program, carry):
        head = program.kv_head * groups
        queries = scaled(setting, fold(setting, heads_first(program, query, setting.heads)))  # [b k i g*q H]
        d_outputs = fold(setting, heads_first(program, d_output, setting.heads))  # [b k i g*q V]
        rows = _Rows(
            queries,
            d_outputs,
            *(
                lax.dynamic_slice(x, indices(program.row, head, 0), (setting.rows, setting.heads, x.shape[2]))
                for x in (log_sum_exp, delta)
            ),
        )

        def key_block(j, carry):
            d_query, d_key, d_value, d_bias, d_queries = carry
            d_keys, d_values, d_queries, d_bias = _differentiate_key_block(
                program, j, rows, key, value, d_queries, d_bias, bias_wanted
            )
            start = indices(program.row, j * grid.key_size, program.kv_head, 0)
            d_key = lax.dynamic_update_slice(d_key, d_keys.swapaxes(1, 2).astype(key.dtype), start)
            d_value = lax.dynamic_update_slice(d_value, d_values.swapaxes(1, 2).astype(value.dtype), start)
            return d_query, d_key, d_value, d_bias, d_queries

        d_queries = jnp.zeros(queries.shape, log_sum_exp.dtype)
        *carry, d_queries = loop(grid.key_count, key_block, (*carry, d_queries))
        d_query, d_key, d_value, d_bias = carry
        if scales_query(queries):
            d_queries *= setting.scale
        update = unfold(setting, d_queries).astype(query.dtype)
        d_query = lax.dynamic_update_slice(d_query, update, indices(program.row, 0, head, 0))
        return d_query, d_key, d_value, d_bias

    zeros = (*(jnp.zeros(x.shape, x.dtype) for x in (query, key, value)), bias_zero)
    return run_programs(setting, batch, num_heads, bias, data, run, zeros)


class _Rows(NamedTuple):
    """What the backward pass reads per query of one program."""

    query: Array  # [b k i g*q H], scaled
    d_output: Array  # [b k i g*q V]
    log_sum_exp: Array  # [b n T]
    delta: Array  # [b n T]


def _differentiate_key_block(program: Program, j, rows: _Rows, key, value, d_queries, d_bias, bias_wanted: bool):
    """Gradients of one block of keys and values `[b k s H]`, and what it adds to those of queries and bias."""
    setting, grid = program.setting, program.setting.grid
    precision = setting.precision
    keys, values = (key_rows(program, x, j) for x in (key, value))

    def visit(i, carry, careful):
        d_keys, d_values, d_queries, d_bias = carry
        place = program.place(i, j)
        q, d_x = (lax.dynamic_index_in_dim(x, i, 2, keepdims=False) for x in (rows.query, rows.d_output))
        log_sum_exp, delta = (cut(x, place.query, place.queries) for x in (rows.log_sum_exp, rows.delta))
        logits, slope = program.logits(q, keys)
        number = 0.0 if careful else program.number(place, q)
        if careful:
            logits = program.add_careful(logits, place, q)
        weights = jnp.exp(logits - (log_sum_exp - number)[..., None])
        folded = (setting.rows, setting.kv_heads, -1, grid.key_size)
        dropped = program.drop(weights, place).reshape(folded)
        d_values += product("bkrs,bkrv->bksv", dropped, d_x, precision)
        d_weights = product("bkrv,bksv->bkrs", d_x, values, precision).reshape(weights.shape)
        d_logits = weights * (program.drop(d_weights, place) - delta[..., None])
        summed = d_logits if careful else d_logits.sum(3, keepdims=True)
        bias_query = program.bias_query(q)
        if bias_wanted:
            d_bias = cast(biases.Bias, program.bias).add_gradient(d_bias, summed, place, not careful, bias_query)
        by_bias = None
        if bias_query is not None:
            by_bias = cast(biases.Bias, program.bias).query_gradient(summed, place, bias_query, not careful)
            by_bias = (by_bias if scales_query(q) else by_bias * setting.scale).reshape(q.shape)
        if slope is not None:
            d_logits *= slope
        if not scales_query(q):
            d_logits *= setting.scale
        d_logits = d_logits.reshape(folded)
        d_keys += product("bkrs,bkrh->bksh", d_logits, q, precision)
        more = lax.dynamic_index_in_dim(d_queries, i, 2, keepdims=False)
        more += product("bkrs,bksh->bkrh", d_logits, keys, precision)
        if by_bias is not None:
            more += by_bias
        return d_keys, d_values, lax.dynamic_update_index_in_dim(d_queries, more, i, 2), d_bias

    d_keys, d_values = (jnp.zeros(x.shape, d_queries.dtype) for x in (keys, values))
    return program.loop(1, j, visit, (d_keys, d_values, d_queries, d_bias))
