"""Which blocks a blockwise kernel visits, in what order, and which of them need care.

A block is skipped when the mask hides all of it, *plain* when the mask shows all of it and the bias is one number per
head, and *careful* otherwise: only then are mask and bias built for it.

    causal, 4 x 4 blocks       sliding window        T5 bias, causal
    c . . .                    c . . .               c . . .         . skipped
    p c . .                    c c . .               c c . .         c careful
    p p c .                    . c c .               p c c .         p plain
    p p p c                    . . c c               p p c c
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int8

from flaxformer.components.attention.blocks import Grid, Known
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import HIDDEN, VISIBLE, Mask

SKIPPED, CAREFUL, PLAIN = 0, 1, 2

# Rows and keys of a block. On a CPU blocks are so large that XLA shares each product among the cores, and small enough
# for the second-level cache (512 x 256 scores in float32 are 512 KiB). Smaller ones need less CPU time, as they skip
# more of a causal mask, but run on one core: choosing by CPU time, or on a busy machine, misleads. Wall milliseconds,
# least of 1 to 4 runs that took turns on an idle machine (2 CPU cores with AVX-512, float32, 8 heads of 64, causal;
# forward / forward + backward; last: 2 key heads, the rows are those of a group of 4, forward + backward):
#                4096          8192          window of 512 in 8192   4096, grouped
#   128 x 128    132 / 522     502 / 2591    77                      471
#   256 x 256    150 / 551                   101
#   512 x 256     92 / 374                                           344
#   512 x 512     91 / 379     301 / 1565    74                      384
#   jax.nn       436 / 2066   2297 / 12653
# Elsewhere it has not been measured.
BLOCK = {"cpu": (512, 256)}
BLOCK_ELSEWHERE = (512, 512)


def block_size() -> tuple[int, int]:
    """Rows and keys of a block on the platform at hand."""
    return BLOCK.get(jax.default_backend(), BLOCK_ELSEWHERE)


class Visits(NamedTuple):
    """For every block along one axis, the blocks along the other: first the plain ones, then the careful ones.

    Attributes:
      order: `[#R n m]` block numbers, one list per chunk of rows R.
      plain: `[#R n]` how many plain ones.
      careful: `[#R n]` how many careful ones.
    """

    order: Int[Known, "#R n m"]
    plain: Int[Known, "#R n"]
    careful: Int[Known, "#R n"]


def grid_for(query_length: int, key_length: int, groups: int, query_size: int | None, key_size: int | None) -> Grid:
    """Block sizes: equal blocks of at most `block_size()`, query rows counted once per head of the group.

    Args:
      query_length: T.
      key_length: S.
      groups: G, query heads per key head, which share a block's rows.
      query_size: queries per block, None to choose.
      key_size: keys per block, None to choose.
    """
    rows, keys = block_size()
    query_size = query_size or _even(query_length, max(rows // groups, rows // 8))
    key_size = key_size or _even(key_length, keys)
    return Grid(-(-query_length // query_size), query_size, -(-key_length // key_size), key_size)


def _even(length: int, most: int) -> int:
    """The size of equal blocks of at most `most`: a multiple of 16, or all of a short length."""
    count = -(-length // most)
    size = -(-length // count)
    return size if count == 1 else -(-size // 16) * 16


def chunk_for(batch: int, kv_heads: int, scores: int) -> tuple[int, int]:
    """How many rows and key heads to work on at once.

    On a CPU as many as make a full block, so that it stays in cache; on accelerators all of them.

    Args:
      batch: B.
      kv_heads: K.
      scores: scores in the block of one row and key head.
    """
    if jax.default_backend() != "cpu":
        return batch, kv_heads
    full = block_size()
    most = max(full[0] * full[1] // scores, 1)
    heads = max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= most)
    most //= heads
    rows = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(most, 1)) if heads == kv_heads else 1
    return rows, heads


def kinds(grid: Grid, mask: Mask | None, bias: Bias | None, rows: int) -> Int8[Known, "#R q k"]:
    """SKIPPED, CAREFUL or PLAIN for every block, one table per chunk of `rows` rows of the batch."""
    if mask is None:
        visibility = np.full((1, grid.query_count, grid.key_count), VISIBLE, np.int8)
    else:
        visibility = mask.visibility(grid)
    if visibility.shape[0] > 1:
        chunks = visibility.reshape(-1, rows, *visibility.shape[1:])
        seen = (chunks.min(1), chunks.max(1))
    else:
        seen = (visibility, visibility)
    plain = seen[0] == VISIBLE
    if bias is not None:
        plain = plain & bias.uniform(grid)
    return (seen[1] != HIDDEN).astype(np.int8) + plain.astype(np.int8)


def may_hold(kinds: Int8[Known, "#R q k"], kind: int) -> bool:
    """Whether a table may hold blocks of some kind, as far as is known while tracing."""
    return not isinstance(kinds, np.ndarray) or bool((kinds == kind).any())


def visits(kinds: Int8[Known, "#R n m"]) -> Visits:
    """The order in which to go through a table of kinds."""
    if isinstance(kinds, np.ndarray):
        order = np.argsort(-kinds, axis=-1, kind="stable").astype(np.int32)
    else:
        order = jnp.argsort(-kinds, axis=-1, stable=True).astype(jnp.int32)
    return Visits(order, (kinds == PLAIN).sum(-1).astype(np.int32), (kinds == CAREFUL).sum(-1).astype(np.int32))
