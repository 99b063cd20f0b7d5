"""The forward pass of the T5 flash kernel."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from flaxformer.components.attention.kernels import flash_t5_tile as tiles
from flaxformer.types import Array


def forward(setting: tiles.Setting, query, key, value, refs: tiles.Refs) -> tuple[Array, Array]:
    """Output `[B T N H]` and log-sum-exp `[B N T]`, +inf in rows that see nothing."""
    (batch, length, heads, width), block = query.shape, setting.block
    row = pl.BlockSpec((None, block, None, width), lambda i, b, n: (b, i, n, 0))
    keys = pl.BlockSpec((None, key.shape[1], None, width), lambda i, b, n: (b, 0, n // setting.groups, 0))
    return tiles.call(
        setting,
        _kernel,
        "flash_t5_forward",
        grid=(length // block, batch, heads),
        in_specs=[row, keys, keys, tiles.specs(refs, lambda i, b, n: (b, n))],
        out_specs=[row, pl.BlockSpec((None, None, block), lambda i, b, n: (b, n, i))],
        out_shape=[tiles.like(query), tiles.like(query, (batch, heads, length), jnp.float32)],
    )(query, key, value, refs)


def _kernel(setting: tiles.Setting, query_ref, key_ref, value_ref, refs: tiles.Refs, output_ref, log_sum_exp_ref):
    """One tile of queries against all tiles of keys that it may see, with a running maximum."""
    i, block = pl.program_id(0), setting.block
    query = query_ref[...]

    def visit(j, carry):
        highest, total, output = carry  # [q], [q], [q H]
        logits = tiles.logits(setting, i, j, query, tiles.tile(key_ref, j, block), refs)
        new_highest = jnp.maximum(highest, jnp.max(logits, axis=-1))
        weights = jnp.exp(logits - new_highest[:, None])
        shrink = jnp.exp(highest - new_highest)
        value = tiles.tile(value_ref, j, block)
        more = tiles.product(setting, weights.astype(value.dtype), value)
        return new_highest, total * shrink + jnp.sum(weights, axis=-1), output * shrink[:, None] + more

    start = (
        jnp.full((block,), tiles.LOWEST, jnp.float32),
        jnp.zeros((block,), jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    highest, total, output = lax.fori_loop(*tiles.key_tiles(setting, i, refs.length[0]), visit, start)
    blind = total == 0
    total = jnp.where(blind, 1.0, total)
    output_ref[...] = (output / total[:, None]).astype(output_ref.dtype)
    log_sum_exp_ref[...] = jnp.where(blind, jnp.inf, highest + jnp.log(total))
