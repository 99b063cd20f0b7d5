"""Which attention weights dropout keeps, as a function of where they stand.

Whether a weight is kept is a hash of a seed and its row, head, query and key, so that any kernel, block size and pass
(forward or backward) finds the same answer without storing it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, UInt32

from flaxformer.components.attention.blocks import Place
from flaxformer.types import Array, PRNGKey


def seeds_from(key: PRNGKey) -> UInt32[Array, "2"]:
    """Two numbers that stand for a random key inside a kernel."""
    return jax.random.bits(key, (2,), jnp.uint32)


def kept(
    seeds: UInt32[Array, "2"], rate: float, place: Place, num_heads: int, query_length: int, broadcast: bool = False
) -> Bool[Array, "b n q k"]:
    """The weights of a block that survive dropout.

    Args:
      seeds: see `seeds_from`.
      rate: share of weights to drop.
      place: the block.
      num_heads: N of the whole.
      query_length: T of the whole.
      broadcast: one answer for all queries; the block has a query axis of size 1.
    """
    rows, heads, keys = _count(place.row, place.rows), _count(place.head, place.heads), _count(place.key, place.keys)
    queries = jnp.zeros(1, jnp.uint32) if broadcast else _count(place.query, place.queries)
    line = (rows[:, None, None] * num_heads + heads[None, :, None]) * query_length + queries[None, None, :]
    line = _mix(line ^ seeds[0])[..., None]
    column = _mix(keys ^ seeds[1])
    return _mix(line + column) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _count(start: Array | int, size: int) -> UInt32[Array, " size"]:
    return jnp.asarray(start).astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)


def _mix(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """A bijection of 32-bit numbers in which every input bit moves every output bit with probability near 1/2.

    Source: the finaliser of MurmurHash3, Austin Appleby, public domain.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
