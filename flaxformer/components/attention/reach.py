"""Patterns of sparse attention as masks: dilated windows, blocks, global tokens, random blocks.

They hold no arrays but positions, so they fit a gin file as the `reach` of an attention layer, and are the same in
training and decoding. Combine them with `|`, and with `Causal()` and the caller's padding by `&`:

>>> from flaxformer.components.attention.masks import Causal, describe
>>> print(describe(Window(2, 2) | Global(((0, 1),)), 8, 8))
xxxxxxxx
xxxx....
xxxxx...
xxxxxx..
x.xxxxx.
x..xxxxx
x...xxxx
x....xxx
>>> print(describe(Causal() & (Dilated(3) | Window(left=1)), 8, 8))
x.......
xx......
.xx.....
x.xx....
.x.xx...
..x.xx..
x..x.xx.
.x..x.xx

`visibility` names the blocks that a kernel can skip. A dilated window has something in every block wider than its
stride: nothing within its reach can be skipped, and the pairs it hides cost as much as those it shows. Of the other
patterns only what they show costs time.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int8

from flaxformer.components.attention.blocks import Grid, Known, Start, cut, namespace, position_ranges, positions_of
from flaxformer.components.attention.masks import VISIBLE, And, Mask, Window, classify, flagged
from flaxformer.types import Array

Spans = tuple[tuple[int, int], ...]


@flax.struct.dataclass
class _Positional(Mask):
    """What masks by position share."""

    query_positions: Int[Array, "#B T"] | None = flax.struct.field(kw_only=True, default=None)
    key_positions: Int[Array, "#B S"] | None = flax.struct.field(kw_only=True, default=None)

    query_fields = ("query_positions",)
    key_fields = ("key_positions",)

    def at(self, query_positions: Array | None, key_positions: Array | None) -> Mask:
        return dataclasses.replace(self, query_positions=query_positions, key_positions=key_positions)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 q k"]:
        query = positions_of(self.query_positions, query_start, query_size)[:, None, :, None]
        return self.sees(query, positions_of(self.key_positions, key_start, key_size)[:, None, None, :])

    def sees(self, query: Int[Array, "#B 1 q 1"], key: Int[Array, "#B 1 1 k"]) -> Bool[Array, "#B 1 q k"]:
        """Whether queries at some positions see keys at others."""
        raise NotImplementedError

    def _ranges(self, grid: Grid) -> tuple[tuple[Known, Known], tuple[Known, Known]]:
        """The least and greatest positions of blocks of queries `[#B q 1]`, and of blocks of keys `[#B 1 k]`."""
        query = position_ranges(self.query_positions, grid.query_count, grid.query_size)
        key = position_ranges(self.key_positions, grid.key_count, grid.key_size)
        return (query[0][:, :, None], query[1][:, :, None]), (key[0][:, None, :], key[1][:, None, :])


@flax.struct.dataclass
class Dilated(_Positional):
    """A query sees every `stride`-th position, counted from its own, `left` of them before and `right` after.

    Attributes:
      stride: static.
      left: how many before; None = all of them. Static.
      right: how many after, likewise.

    Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers" (strided),
    https://arxiv.org/abs/1904.10509; Beltagy et al. 2020, "Longformer" (dilated window),
    https://arxiv.org/abs/2004.05150.
    """

    stride: int = flax.struct.field(pytree_node=False)
    left: int | None = flax.struct.field(pytree_node=False, default=None)
    right: int | None = flax.struct.field(pytree_node=False, default=None)

    def sees(self, query: Int[Array, "#B 1 q 1"], key: Int[Array, "#B 1 1 k"]) -> Bool[Array, "#B 1 q k"]:
        distance = key - query
        seen = distance % _positive("stride", self.stride) == 0
        if self.left is not None:
            seen &= distance >= -self.left * self.stride
        if self.right is not None:
            seen &= distance <= self.right * self.stride
        return seen

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        (query_low, query_high), (key_low, key_high) = self._ranges(grid)
        stride = _positive("stride", self.stride)
        nearest, furthest = key_low - query_high, key_high - query_low
        module = namespace(nearest, furthest)
        low = nearest if self.left is None else module.maximum(nearest, -self.left * stride)
        high = furthest if self.right is None else module.minimum(furthest, self.right * stride)
        first = -(-low // stride) * stride  # the least multiple of the stride from `low` on
        return classify(hidden=first > high, visible=(stride == 1) & (low == nearest) & (high == furthest))


@flax.struct.dataclass
class Blocks(_Positional):
    """Positions are cut into blocks of `size`; a query sees its own block, `before` blocks before it and `after` after.

    Attributes:
      size: positions per block. Static.
      before: static.
      after: static.

    >>> from flaxformer.components.attention.masks import describe
    >>> print(describe(Blocks(2, before=1), 6, 6))
    xx....
    xx....
    xxxx..
    xxxx..
    ..xxxx
    ..xxxx

    Source: Child et al. 2019 (`Causal() & Blocks(size)` is half of their fixed pattern),
    https://arxiv.org/abs/1904.10509.
    """

    size: int = flax.struct.field(pytree_node=False)
    before: int = flax.struct.field(pytree_node=False, default=0)
    after: int = flax.struct.field(pytree_node=False, default=0)

    def sees(self, query: Int[Array, "#B 1 q 1"], key: Int[Array, "#B 1 1 k"]) -> Bool[Array, "#B 1 q k"]:
        size = _positive("size", self.size)
        distance = key // size - query // size
        return (distance >= -self.before) & (distance <= self.after)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        size = _positive("size", self.size)
        (query_low, query_high), (key_low, key_high) = self._ranges(grid)
        nearest, furthest = key_low // size - query_high // size, key_high // size - query_low // size
        return classify(
            hidden=(furthest < -self.before) | (nearest > self.after),
            visible=(nearest >= -self.before) & (furthest <= self.after),
        )


@flax.struct.dataclass
class Global(_Positional):
    """Tokens in the given spans see everything, and everything sees them.

    Attributes:
      spans: `((start, end), ...)` of positions, ends excluded. Static.
      sees_all: whether queries in the spans see everything; otherwise they are only seen. Static.

    Source: Beltagy et al. 2020, "Longformer", https://arxiv.org/abs/2004.05150; Xiao et al. 2023, "Efficient Streaming
    Language Models with Attention Sinks" (`Causal() & (Window(left=1020) | Global(((0, 4),)))`),
    https://arxiv.org/abs/2309.17453.
    """

    spans: Spans = flax.struct.field(pytree_node=False, default=((0, 1),))
    sees_all: bool = flax.struct.field(pytree_node=False, default=True)

    def sees(self, query: Int[Array, "#B 1 q 1"], key: Int[Array, "#B 1 1 k"]) -> Bool[Array, "#B 1 q k"]:
        seen = self._inside(key)
        shape = jnp.broadcast_shapes(query.shape, key.shape)
        return seen | self._inside(query) if self.sees_all else jnp.broadcast_to(seen, shape)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        query, key = (self._known(*ranges) for ranges in self._ranges(grid))
        module = namespace(query, key)
        return module.maximum(query if self.sees_all else query * 0, key)

    def _inside(self, position: Int[Array, "*n"]) -> Bool[Array, "*n"]:
        inside = [(position >= start) & (position < end) for start, end in self.spans]
        return functools.reduce(jnp.logical_or, inside, jnp.zeros(position.shape, bool))

    def _known(self, low: Int[Known, "*n"], high: Int[Known, "*n"]) -> Int8[Known, "*n"]:
        """HIDDEN, MIXED or VISIBLE for ranges of positions."""
        module = namespace(low, high)
        touched, covered = module.zeros(low.shape, bool), module.zeros(low.shape, bool)
        for start, end in self.spans:
            touched |= (high >= start) & (low < end)
            covered |= (low >= start) & (high < end)
        return classify(hidden=~touched, visible=covered)


@flax.struct.dataclass
class Flagged(Mask):
    """Visible where the query or the key is flagged: global tokens that differ from row to row.

    Attributes:
      query_flags: `[#B T]` bool.
      key_flags: `[#B S]` bool.
    """

    query_flags: Bool[Array, "#B T"]
    key_flags: Bool[Array, "#B S"]

    query_fields = ("query_flags",)
    key_fields = ("key_flags",)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 q k"]:
        query = cut(self.query_flags, query_start, query_size)[:, None, :, None]
        return query | cut(self.key_flags, key_start, key_size)[:, None, None, :]

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        query = flagged(self.query_flags, grid.query_count, grid.query_size)[:, :, None]
        key = flagged(self.key_flags, grid.key_count, grid.key_size)[:, None, :]
        return namespace(query, key).maximum(query, key)


@flax.struct.dataclass
class GlobalTokens(Mask):
    """Hides nothing; tells attention layers that are sparse by themselves which tokens are global, row by row.

    Attributes:
      flags: `[#B T]` bool, of queries and keys alike.
    """

    flags: Bool[Array, "#B T"]

    query_fields = ("flags",)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "1 1 q k"]:
        return jnp.ones((1, 1, query_size, key_size), bool)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        return np.full((1, grid.query_count, grid.key_count), VISIBLE, np.int8)


def global_tokens(mask: Mask | None) -> Bool[Array, "#B T"] | None:
    """The flags of the `GlobalTokens` in a mask or in a conjunction; None where it has none."""
    parts = mask.parts if isinstance(mask, And) else (mask,)
    return next((part.flags for part in parts if isinstance(part, GlobalTokens)), None)


@flax.struct.dataclass
class RandomBlocks(_Positional):
    """A query sees `count` blocks drawn at random for its own block, once and for all.

    Attributes:
      size: positions per block. Static.
      blocks: how many blocks there are to draw from; positions beyond them neither see nor are seen. Static.
      count: blocks drawn for each. Static.
      seed: another seed, another pattern. Static.
      avoid: blocks before and after its own that are not drawn, as a window shows them already. Static.
      edge: blocks at either end that are not drawn, as they are global. Static.

    Source: Zaheer et al. 2020, "Big Bird", https://arxiv.org/abs/2007.14062, section 2.
    """

    size: int = flax.struct.field(pytree_node=False)
    blocks: int = flax.struct.field(pytree_node=False)
    count: int = flax.struct.field(pytree_node=False, default=3)
    seed: int = flax.struct.field(pytree_node=False, default=0)
    avoid: int = flax.struct.field(pytree_node=False, default=0)
    edge: int = flax.struct.field(pytree_node=False, default=0)

    def sees(self, query: Int[Array, "#B 1 q 1"], key: Int[Array, "#B 1 1 k"]) -> Bool[Array, "#B 1 q k"]:
        size = _positive("size", self.size)
        drawn = jnp.asarray(np.pad(self._drawn(), (0, 1)))  # what lies beyond reads the empty last row or column
        query, key = (jnp.where(x < 0, self.blocks, jnp.minimum(x // size, self.blocks)) for x in (query, key))
        return drawn[query, key]

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        (query_low, query_high), (key_low, key_high) = self._ranges(grid)
        module = namespace(query_low, key_low)
        summed = np.pad(self._drawn().astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        if module is jnp:
            summed = jnp.asarray(summed)
        (top, bottom), (left, right) = (
            [module.clip(x // self.size, -1, self.blocks) for x in ranges]
            for ranges in ((query_low, query_high), (key_low, key_high))
        )
        asked = (bottom - top + 1) * (right - left + 1)
        top, left = module.maximum(top, 0), module.maximum(left, 0)
        bottom, right = (module.minimum(x, self.blocks - 1) + 1 for x in (bottom, right))
        found = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
        empty = (bottom <= top) | (right <= left)
        return classify(hidden=empty | (found == 0), visible=~empty & (found == asked))

    def _drawn(self) -> Bool[np.ndarray, "blocks blocks"]:
        return _draw_blocks(self.blocks, self.count, self.seed, self.avoid, self.edge)


@functools.cache
def _draw_blocks(blocks: int, count: int, seed: int, avoid: int, edge: int) -> Bool[np.ndarray, "blocks blocks"]:
    """Which key blocks each query block has drawn; fewer where there are not enough to draw from."""
    drawn = np.zeros((blocks, blocks), bool)
    for i in range(blocks):
        others = [j for j in range(edge, blocks - edge) if abs(i - j) > avoid or not avoid]
        drawn[i, np.random.default_rng((seed, i)).permutation(others)[:count].astype(int)] = True
    return drawn


def big_bird(block_size: int, length: int, random_blocks: int = 3, seed: int = 0) -> Mask:
    """BigBird's pattern: blocks see their neighbours, the first and the last block, and some drawn at random.

    Args:
      block_size: positions per block.
      length: positions of the longest sequence; its last block is the global one. The pattern is for this length.
      random_blocks: drawn for each block, beside its neighbours and the global ones.
      seed: another seed, another draw.

    >>> from flaxformer.components.attention.masks import describe
    >>> print(describe(big_bird(1, 9, random_blocks=1), 9, 9))
    xxxxxxxxx
    xxx.x...x
    xxxx..x.x
    x.xxx.x.x
    x..xxxx.x
    x...xxxxx
    x.x..xxxx
    xx....xxx
    xxxxxxxxx

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", https://arxiv.org/abs/2007.14062.
    """
    blocks = -(-length // _positive("block_size", block_size))
    ends = Global(((0, block_size), ((blocks - 1) * block_size, blocks * block_size)))
    drawn = RandomBlocks(block_size, blocks, random_blocks, seed, avoid=1, edge=1)
    return Blocks(block_size, before=1, after=1) | ends | drawn


def sliding_window(size: int) -> Window:
    """The `size` positions up to and with a query's own, as Mistral counts its window.

    Source: Jiang et al. 2023, "Mistral 7B", https://arxiv.org/abs/2310.06825
    """
    return Window(left=_positive("size", size) - 1, right=0)


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{name} is {number}; expected at least 1, a number of positions.")
    return number
