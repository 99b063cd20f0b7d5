"""Who may see whom, said symbolically, and made into an array only where it must be.

Glossary:

* A *mask* says for every pair of a query and a key whether the query may see the key. True = may see.
* `dense(T, S)` is its whole picture, `[#B #N T S]` bool; `block(...)` a rectangle of that picture.
* `visibility(...)` is what is known about blocks before any array exists: a kernel skips blocks that are `HIDDEN` and
  masks only those that are `MIXED`. As HIDDEN < MIXED < VISIBLE, a conjunction is a minimum, a disjunction a maximum.
  Where a mask's arrays are NumPy arrays, or there are none, the answer is a NumPy array, known while tracing.
* *Positions* say where tokens stand in their own sequence. Until `at` binds others, they are the row offsets 0, 1, 2...

Masks are pytrees: arrays are leaves, window sizes are static. `&` and `|` combine them:

>>> print(describe(Causal() & Window(left=2), 5, 5))
x....
xx...
xxx..
.xxx.
..xxx
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, cast, overload

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int8

from flaxformer.components.attention.blocks import (
    Grid,
    Known,
    Start,
    cut,
    grow,
    namespace,
    position_ranges,
    positions_of,
    ranges_of,
)
from flaxformer.types import Array

# Added to the scores of hidden pairs. Large enough that the score of a hidden key is lost next to any visible one, and
# finite in float32 and bfloat16, so that a row that sees nothing attends evenly instead of turning into NaN. It is the
# value that published checkpoints were trained with. It overflows float16, whose softmax is therefore made in float32.
MASKED_LOGIT = -1e10

HIDDEN, MIXED, VISIBLE = 0, 1, 2


class Mask:
    """Base of all masks. A subclass says `block` and, where it knows something in advance, `visibility`."""

    query_fields: ClassVar[tuple[str, ...]] = ()  # arrays `[#B T]`
    key_fields: ClassVar[tuple[str, ...]] = ()  # arrays `[#B S]`

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        """The rectangle of the picture that starts at (`query_start`, `key_start`); starts may be traced."""
        raise NotImplementedError

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        """HIDDEN, MIXED or VISIBLE for every block of the grid, without looking at single pairs.

        HIDDEN and VISIBLE are certain; MIXED may also mean that the mask cannot tell. The grid must cover exactly the
        lengths of the mask's arrays (see `pad`).
        """
        return np.full((1, grid.query_count, grid.key_count), MIXED, np.int8)

    def at(self, query_positions: Int[Array, "#B T"] | None, key_positions: Int[Array, "#B S"] | None) -> Mask:
        """This mask for tokens at the given positions; masks that do not look at positions stay as they are."""
        return self

    def dense(self, query_length: int, key_length: int) -> Bool[Array, "#B #N T S"]:
        """The whole picture, with axes of size 1 where all rows of the batch, or all heads, agree."""
        self.validate(query_length, key_length)
        picture = self.block(0, query_length, 0, key_length)
        return jnp.broadcast_to(picture, (*picture.shape[:-2], query_length, key_length))

    def pad(self, query_length: int, key_length: int) -> Mask:
        """This mask for longer sequences. What it says about the added pairs means nothing."""
        grown = {name: grow(getattr(self, name), query_length) for name in self.query_fields}
        grown |= {name: grow(getattr(self, name), key_length) for name in self.key_fields}
        return dataclasses.replace(cast(Any, self), **grown) if grown else self

    def validate(self, query_length: int, key_length: int) -> None:
        """Raises a ValueError unless the arrays inside fit queries and keys of these lengths."""
        for fields, axis, length in ((self.query_fields, "T", query_length), (self.key_fields, "S", key_length)):
            for name in fields:
                array = getattr(self, name)
                if array is not None and (array.ndim != 2 or array.shape[-1] != length):
                    raise ValueError(
                        f"{type(self).__name__}.{name} has shape {array.shape}; expected [#B {axis}] = (#B, {length}). "
                        "Give one entry per token, with a batch axis of size 1 where all rows agree."
                    )

    def __and__(self, other: Mask | Array) -> Mask:
        return And((*_parts(self, And), *_parts(as_mask(other), And)))

    def __or__(self, other: Mask | Array) -> Mask:
        return Or((*_parts(self, Or), *_parts(as_mask(other), Or)))


@flax.struct.dataclass
class Window(Mask):
    """A query sees `left` positions before its own and `right` after it; None = all of them.

    Attributes:
      left: static.
      right: static.
      query_positions: `[#B T]` int, set by `at`. None: 0, 1, 2...
      key_positions: `[#B S]` int, likewise.
    """

    left: int | None = flax.struct.field(pytree_node=False, default=None)
    right: int | None = flax.struct.field(pytree_node=False, default=None)
    query_positions: Int[Array, "#B T"] | None = None
    key_positions: Int[Array, "#B S"] | None = None

    query_fields = ("query_positions",)
    key_fields = ("key_positions",)

    def at(self, query_positions: Array | None, key_positions: Array | None) -> Mask:
        return dataclasses.replace(self, query_positions=query_positions, key_positions=key_positions)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 q k"]:
        query = positions_of(self.query_positions, query_start, query_size)[:, None, :, None]
        key = positions_of(self.key_positions, key_start, key_size)[:, None, None, :]
        seen = jnp.ones((1, 1, query_size, key_size), bool)
        if self.right is not None:
            seen &= key <= query + self.right
        if self.left is not None:
            seen &= key >= query - self.left
        return seen

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        query_low, query_high = position_ranges(self.query_positions, grid.query_count, grid.query_size)
        key_low, key_high = position_ranges(self.key_positions, grid.key_count, grid.key_size)
        nearest = key_low[:, None, :] - query_high[:, :, None]  # the least key - query in the block
        furthest = key_high[:, None, :] - query_low[:, :, None]
        left = -np.inf if self.left is None else -self.left
        right = np.inf if self.right is None else self.right
        return classify(hidden=(furthest < left) | (nearest > right), visible=(nearest >= left) & (furthest <= right))


@flax.struct.dataclass
class Causal(Window):
    """A query sees its own position and everything before it.

    >>> print(describe(Causal(), 3, 4))
    x...
    xx..
    xxx.
    """

    right: int | None = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class Segments(Mask):
    """A query sees the keys of its own segment: several examples packed into one row stay apart.

    Attributes:
      query_ids: `[#B T]` int.
      key_ids: `[#B S]` int.
    """

    query_ids: Int[Array, "#B T"]
    key_ids: Int[Array, "#B S"]

    query_fields = ("query_ids",)
    key_fields = ("key_ids",)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 q k"]:
        query = cut(self.query_ids, query_start, query_size)[:, None, :, None]
        return query == cut(self.key_ids, key_start, key_size)[:, None, None, :]

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        query_low, query_high = (x[:, :, None] for x in ranges_of(self.query_ids, grid.query_size))
        key_low, key_high = (x[:, None, :] for x in ranges_of(self.key_ids, grid.key_size))
        alike = (query_low == query_high) & (key_low == key_high) & (query_low == key_low)
        return classify(hidden=(query_high < key_low) | (query_low > key_high), visible=alike)


@flax.struct.dataclass
class Padding(Mask):
    """Visible where the query and the key are both flagged; None = all of them are.

    Attributes:
      query_valid: `[#B T]` bool.
      key_valid: `[#B S]` bool.
    """

    query_valid: Bool[Array, "#B T"] | None = None
    key_valid: Bool[Array, "#B S"] | None = None

    query_fields = ("query_valid",)
    key_fields = ("key_valid",)

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 #q #k"]:
        seen = jnp.ones((1, 1, 1, 1), bool)
        if self.query_valid is not None:
            seen &= cut(self.query_valid, query_start, query_size)[:, None, :, None]
        if self.key_valid is not None:
            seen &= cut(self.key_valid, key_start, key_size)[:, None, None, :]
        return seen

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        query = flagged(self.query_valid, grid.query_count, grid.query_size)[:, :, None]
        key = flagged(self.key_valid, grid.key_count, grid.key_size)[:, None, :]
        return namespace(query, key).minimum(query, key)


@flax.struct.dataclass
class KeyLengths(Mask):
    """A row sees its first `lengths[b]` keys.

    Attributes:
      lengths: `[#B]` int.
    """

    lengths: Int[Known, " #B"]

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 1 k"]:
        keys = key_start + jnp.arange(key_size, dtype=jnp.int32)
        return keys < jnp.asarray(self.lengths)[:, None, None, None]

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        first = np.arange(grid.key_count)[None, :] * grid.key_size
        lengths = self.lengths[:, None]
        key = classify(hidden=first >= lengths, visible=first + grid.key_size <= lengths)
        return namespace(key).broadcast_to(key[:, None, :], (key.shape[0], grid.query_count, grid.key_count))

    def validate(self, query_length: int, key_length: int) -> None:
        if self.lengths.ndim != 1:
            raise ValueError(
                f"KeyLengths.lengths has shape {self.lengths.shape}; expected [#B], one length per row of the batch. "
                "For flags per key use Padding(key_valid=...)."
            )


@flax.struct.dataclass
class ArrayMask(Mask):
    """A picture that is given as such.

    Attributes:
      array: `[#B #N #T #S]` bool.
    """

    array: Bool[Array, "#B #N #T #S"]

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        return cut(cut(self.array, key_start, key_size), query_start, query_size, axis=-2)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        shape = self.array.shape
        lengths = (grid.query_count * grid.query_size, grid.key_count * grid.key_size)
        seen = namespace(self.array).broadcast_to(self.array, (*shape[:-2], *lengths))
        blocks = seen.reshape(shape[0], -1, grid.query_count, grid.query_size, grid.key_count, grid.key_size)
        return classify(hidden=~blocks.any((1, 3, 5)), visible=blocks.all((1, 3, 5)))

    def pad(self, query_length: int, key_length: int) -> Mask:
        array = self.array if self.array.shape[-1] == 1 else grow(self.array, key_length)
        return ArrayMask(array if array.shape[-2] == 1 else grow(array, query_length, axis=-2))

    def validate(self, query_length: int, key_length: int) -> None:
        shape = self.array.shape
        if len(shape) < 2 or shape[-2] not in (1, query_length) or shape[-1] not in (1, key_length):
            raise ValueError(
                f"mask has shape {shape}; expected [#B #N #T #S] = (#B, #N, #{query_length}, #{key_length}), "
                "with size 1 allowed where # stands. Was it built for other lengths?"
            )


@flax.struct.dataclass
class _Several(Mask):
    """What `And` and `Or` share."""

    parts: tuple[Mask, ...]

    def at(self, query_positions: Array | None, key_positions: Array | None) -> Mask:
        return type(self)(tuple(part.at(query_positions, key_positions) for part in self.parts))

    def pad(self, query_length: int, key_length: int) -> Mask:
        return type(self)(tuple(part.pad(query_length, key_length) for part in self.parts))

    def validate(self, query_length: int, key_length: int) -> None:
        for part in self.parts:
            part.validate(query_length, key_length)


@flax.struct.dataclass
class And(_Several):
    """Visible where every part says so. Written `a & b`."""

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        blocks = [part.block(query_start, query_size, key_start, key_size) for part in self.parts]
        return functools.reduce(jnp.logical_and, blocks)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        parts = [part.visibility(grid) for part in self.parts]
        return functools.reduce(namespace(*parts).minimum, parts)


@flax.struct.dataclass
class Or(_Several):
    """Visible where any part says so. Written `a | b`."""

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        blocks = [part.block(query_start, query_size, key_start, key_size) for part in self.parts]
        return functools.reduce(jnp.logical_or, blocks)

    def visibility(self, grid: Grid) -> Int8[Known, "#B q k"]:
        parts = [part.visibility(grid) for part in self.parts]
        return functools.reduce(namespace(*parts).maximum, parts)


def prefix_lm(query_prefix: Bool[Array, "#B T"], key_prefix: Bool[Array, "#B S"]) -> Mask:
    """Causal, except that all flagged positions see each other, contiguous or not.

    >>> print(describe(prefix_lm(*[np.array([[True, True, False, False]])] * 2), 4, 4))
    xx..
    xx..
    xxx.
    xxxx

    Source: Raffel et al. 2020, "Exploring the limits of transfer learning", section 3.2.1, https://arxiv.org/abs/1910.10683
    """
    return Causal() | Padding(query_prefix, key_prefix)


@overload
def as_mask(mask: None) -> None: ...


@overload
def as_mask(mask: Mask | Array) -> Mask: ...


def as_mask(mask: Mask | Array | None) -> Mask | None:
    """A mask as google/flaxformer means it: symbolic, or an array in which an entry above 0 means "may see"."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if not hasattr(mask, "dtype"):
        raise ValueError(
            f"the mask is a {type(mask).__name__}; expected a symbolic mask such as Causal(), or an array whose "
            "entries above 0 mean visible."
        )
    return ArrayMask(mask if mask.dtype == bool else mask > 0)


def combine(*masks: Mask | Array | None) -> Mask | None:
    """The conjunction of all masks that are given, None without any."""
    parts = [part for mask in masks if mask is not None for part in _parts(as_mask(mask), And)]
    return And(tuple(parts)) if len(parts) > 1 else next(iter(parts), None)


def describe(mask: Mask | Array, query_length: int, key_length: int, row: int = 0, head: int = 0) -> str:
    """The picture of one row of the batch and one head: a line per query, `x` for keys it sees, `.` for the others."""
    picture = np.asarray(as_mask(mask).dense(query_length, key_length))
    picture = picture[row if picture.shape[0] > 1 else 0, head if picture.shape[1] > 1 else 0]
    return "\n".join("".join("x" if seen else "." for seen in line) for line in picture)


def _parts(mask: Mask, kind: type[_Several]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def flagged(flags: Known | None, count: int, size: int) -> Int8[Known, "#B n"]:
    """HIDDEN, MIXED or VISIBLE for `count` blocks of flags; None = all are set."""
    if flags is None:
        return np.full((1, count), VISIBLE, np.int8)
    every, some = ranges_of(flags, size)
    return classify(hidden=~some, visible=every)


def classify(hidden: Known, visible: Known) -> Int8[Known, "*n"]:
    """HIDDEN, MIXED or VISIBLE from what is certain; `hidden` wins."""
    return (~hidden).astype(np.int8) * (visible.astype(np.int8) + np.int8(1))
