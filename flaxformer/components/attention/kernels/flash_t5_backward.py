"""The backward pass of the T5 flash kernel: one kernel for keys and values, one for queries and the table."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from flaxformer.components.attention.kernels import flash_t5_tile as tiles
from flaxformer.types import Array


def backward(setting: tiles.Setting, query, key, value, refs: tiles.Refs, d_output, log_sum_exp, delta):
    """Gradients of query, key, value and, with a bias, of the table `[N buckets]` (else None)."""
    d_key, d_value = _differentiate_keys(setting, query, key, value, refs, d_output, log_sum_exp, delta)
    d_query, d_table = _differentiate_queries(setting, query, key, value, refs, d_output, log_sum_exp, delta)
    return d_query, d_key, d_value, d_table


def _specs(setting: tiles.Setting, query: Array, key: Array):
    """How programs (tile, b, n) cut arrays: a tile or all of a query-sided one, of a key-sided one, of `[B N T]`."""
    width, block, groups = query.shape[3], setting.block, setting.groups
    return {
        "query": pl.BlockSpec((None, block, None, width), lambda i, b, n: (b, i, n, 0)),
        "queries": pl.BlockSpec((None, query.shape[1], None, width), lambda i, b, n: (b, 0, n, 0)),
        "key": pl.BlockSpec((None, block, None, width), lambda i, b, n: (b, i, n // groups, 0)),
        "keys": pl.BlockSpec((None, key.shape[1], None, width), lambda i, b, n: (b, 0, n // groups, 0)),
        "number": pl.BlockSpec((None, None, block), lambda i, b, n: (b, n, i)),
        "numbers": pl.BlockSpec((None, None, query.shape[1]), lambda i, b, n: (b, n, 0)),
    }


def _differentiate_keys(setting: tiles.Setting, query, key, value, refs, d_output, log_sum_exp, delta):
    """Gradients of keys and values: per query head, summed over the heads of a group afterwards."""
    batch, length, kv_heads, width = key.shape
    specs = _specs(setting, query, key)
    per_head = tiles.like(key, (batch, length, query.shape[2], width), jnp.float32)
    found = tiles.call(
        setting,
        _key_kernel,
        "flash_t5_backward_keys",
        grid=(length // setting.block, batch, query.shape[2]),
        in_specs=[
            *(specs[name] for name in ("queries", "key", "key", "queries", "numbers", "numbers")),
            tiles.specs(refs, lambda i, b, n: (b, n)),
        ],
        out_specs=[specs["query"]] * 2,
        out_shape=[per_head] * 2,
    )(query, key, value, d_output, log_sum_exp, delta, refs)
    return [
        x.reshape(batch, length, kv_heads, setting.groups, width).sum(3).astype(like.dtype)
        for x, like in zip(found, (key, value), strict=True)
    ]


def _key_kernel(
    setting: tiles.Setting,
    query_ref,
    key_ref,
    value_ref,
    d_output_ref,
    sums_ref,
    delta_ref,
    refs,
    d_key_ref,
    d_value_ref,
):
    """One tile of keys against all tiles of queries that may see it."""
    j, block = pl.program_id(0), setting.block
    key, value = key_ref[...], value_ref[...]

    def visit(i, carry):
        d_key, d_value = carry
        query, d_output, sums, delta = (tiles.tile(x, i, block) for x in (query_ref, d_output_ref, sums_ref, delta_ref))
        weights = jnp.exp(tiles.logits(setting, i, j, query, key, refs) - sums[:, None])
        d_value += tiles.product(setting, weights.astype(d_output.dtype).T, d_output)
        d_logits = weights * (tiles.product(setting, d_output, value.T) - delta[:, None])
        return d_key + tiles.product(setting, d_logits.astype(query.dtype).T, query), d_value

    first, last = tiles.query_tiles(setting, j, query_ref.shape[0])
    last = jnp.where(j * block < refs.length[0], last, first)
    start = (jnp.zeros(key.shape, jnp.float32),) * 2
    d_key, d_value = lax.fori_loop(first, last, visit, start)
    d_key_ref[...] = d_key * setting.scale
    d_value_ref[...] = d_value


def _differentiate_queries(setting: tiles.Setting, query, key, value, refs, d_output, log_sum_exp, delta):
    """Gradients of queries, and of the table: per tile of queries, summed afterwards."""
    batch, length, heads, _ = query.shape
    specs, count = _specs(setting, query, key), length // setting.block
    outputs = [(specs["query"], tiles.like(query))]
    if refs.table is not None:
        buckets = refs.table.shape[1]
        spec = pl.BlockSpec((None, None, None, buckets), lambda i, b, n: (b, n, i, 0))
        outputs.append((spec, tiles.like(query, (batch, heads, count, buckets), jnp.float32)))
    d_query, *d_table = tiles.call(
        setting,
        _query_kernel,
        "flash_t5_backward_queries",
        grid=(count, batch, heads),
        in_specs=[
            *(specs[name] for name in ("query", "keys", "keys", "query", "number", "number")),
            tiles.specs(refs, lambda i, b, n: (b, n)),
        ],
        out_specs=[spec for spec, _ in outputs],
        out_shape=[shape for _, shape in outputs],
    )(query, key, value, d_output, log_sum_exp, delta, refs)
    return d_query, d_table[0].sum((0, 2)) if d_table else None


def _query_kernel(
    setting: tiles.Setting,
    query_ref,
    key_ref,
    value_ref,
    d_output_ref,
    sums_ref,
    delta_ref,
    refs,
    d_query_ref,
    *table_ref,
):
    """One tile of queries against all tiles of keys that it may see."""
    i, block = pl.program_id(0), setting.block
    query, d_output, sums, delta = query_ref[...], d_output_ref[...], sums_ref[...], delta_ref[...]

    def visit(j, carry):
        d_query, d_table = carry
        key, value = tiles.tile(key_ref, j, block), tiles.tile(value_ref, j, block)
        weights = jnp.exp(tiles.logits(setting, i, j, query, key, refs) - sums[:, None])
        d_logits = weights * (tiles.product(setting, d_output, value.T) - delta[:, None])
        if table_ref:
            d_table = _add_to_table(setting, i, j, d_logits, d_table)
        return d_query + tiles.product(setting, d_logits.astype(key.dtype), key), d_table

    start = jnp.zeros(query.shape, jnp.float32), jnp.zeros(table_ref[0].shape if table_ref else (1,), jnp.float32)
    d_query, d_table = lax.fori_loop(*tiles.key_tiles(setting, i, refs.length[0]), visit, start)
    d_query_ref[...] = (d_query * setting.scale).astype(d_query_ref.dtype)
    if table_ref:
        table_ref[0][...] = d_table


def _add_to_table(setting: tiles.Setting, i, j, d_logits: Array, d_table: Array) -> Array:
    """The table's gradient with what a tile adds to it: one sum where it has one bucket, else a sum per bucket."""
    buckets = setting.buckets
    assert buckets is not None
    numbers = jnp.arange(d_table.shape[0], dtype=jnp.int32)

    def total(x: Array) -> Array:
        return jnp.sum(jnp.sum(x, axis=1), axis=0)

    def alike() -> Array:
        bucket = buckets.of((j - i) * setting.block)
        return d_table + jnp.where(numbers == bucket, total(d_logits), 0.0)

    def each() -> Array:
        bucket = buckets.of(tiles.relative(setting, i, j))

        def add(n, d_table):
            return d_table + jnp.where(numbers == n, total(jnp.where(bucket == n, d_logits, 0.0)), 0.0)

        return lax.fori_loop(0, buckets.count, add, d_table)

    return lax.cond(tiles.one_bucket(setting, i, j), alike, each)
