"""Who may see whom, said symbolically, and made into an array only where it must be.

Glossary:

* A *mask* says for every pair of a query and a key whether the query may see the key. True = may see.
* `dense(T, S)` is its whole picture, `[#B #N T S]` bool; `block(...)` a rectangle of that picture.
* `visibility(...)` is what is known about blocks before any array exists: a kernel skips blocks that are `HIDDEN` and
  masks only those that are `MIXED`. Since HIDDEN < MIXED < VISIBLE, a conjunction is a minimum, a disjunction a maximum.
* *Positions* say where tokens stand in their own sequence. Until `at` binds others, they are the row offsets 0, 1, 2...

Masks are pytrees: arrays are leaves, window sizes are static. NumPy arrays count as known at trace time, JAX arrays as
unknown. `&` and `|` combine masks:

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
from typing import Any, ClassVar, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int8

from flaxformer.types import Array

# Added to the scores of hidden pairs. Large enough that the score of a hidden key is lost next to any visible one, and
# finite in float32 and bfloat16, so that a row that sees nothing attends evenly instead of turning into NaN. It is the
# value that published checkpoints were trained with. It overflows float16, whose softmax is therefore made in float32.
MASKED_LOGIT = -1e10

HIDDEN, MIXED, VISIBLE = 0, 1, 2

Start: TypeAlias = int | Int[Array, ""]
Edges: TypeAlias = Int[np.ndarray, " n+1"]


class Mask:
    """Base of all masks. A subclass says `block` and, where it knows something in advance, `visibility`."""

    query_fields: ClassVar[tuple[str, ...]] = ()  # arrays `[#B T]`
    key_fields: ClassVar[tuple[str, ...]] = ()  # arrays `[#B S]`

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        """The rectangle of the picture that starts at (`query_start`, `key_start`); starts may be traced."""
        raise NotImplementedError

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        """HIDDEN, MIXED or VISIBLE for every block, as far as trace time tells.

        Args:
          query_edges: block i covers the queries `query_edges[i] : query_edges[i + 1]`.
          key_edges: the same for keys.
        """
        return np.full((len(query_edges) - 1, len(key_edges) - 1), MIXED, np.int8)

    def at(self, query_positions: Int[Array, "#B T"] | None, key_positions: Int[Array, "#B S"] | None) -> Mask:
        """This mask for tokens that stand at the given positions; masks that do not look at positions stay as they are."""
        return self

    def dense(self, query_length: int, key_length: int) -> Bool[Array, "#B #N T S"]:
        """The whole picture, with axes of size 1 where all rows of the batch, or all heads, agree."""
        self.validate(query_length, key_length)
        picture = self.block(0, query_length, 0, key_length)
        return jnp.broadcast_to(picture, (*picture.shape[:-2], query_length, key_length))

    def pad(self, query_length: int, key_length: int) -> Mask:
        """This mask for longer sequences. What it says about the added pairs means nothing."""
        grown = {name: _grow(getattr(self, name), query_length) for name in self.query_fields}
        grown |= {name: _grow(getattr(self, name), key_length) for name in self.key_fields}
        return dataclasses.replace(self, **grown) if grown else self

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
        query = _positions(self.query_positions, query_start, query_size)[:, None, :, None]
        key = _positions(self.key_positions, key_start, key_size)[:, None, None, :]
        seen = jnp.ones((1, 1, query_size, key_size), bool)
        if self.right is not None:
            seen &= key <= query + self.right
        if self.left is not None:
            seen &= key >= query - self.left
        return seen

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        query = _ranges(self.query_positions, query_edges)
        key = _ranges(self.key_positions, key_edges)
        if query is None or key is None:
            return super().visibility(query_edges, key_edges)
        nearest = key[0][None, :] - query[1][:, None]  # the least key - query in the block
        furthest = key[1][None, :] - query[0][:, None]
        left = -np.inf if self.left is None else -self.left
        right = np.inf if self.right is None else self.right
        return _classify(hidden=(furthest < left) | (nearest > right), visible=(nearest >= left) & (furthest <= right))


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
        query = _cut(self.query_ids, query_start, query_size)[:, None, :, None]
        return query == _cut(self.key_ids, key_start, key_size)[:, None, None, :]

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        query, key = _row_ranges(self.query_ids, query_edges), _row_ranges(self.key_ids, key_edges)
        if query is None or key is None:
            return super().visibility(query_edges, key_edges)
        (query_low, query_high), (key_low, key_high) = query, key  # each [#B n]
        apart = (query_high[:, :, None] < key_low[:, None, :]) | (query_low[:, :, None] > key_high[:, None, :])
        low = np.minimum(query_low[:, :, None], key_low[:, None, :])
        high = np.maximum(query_high[:, :, None], key_high[:, None, :])
        return _classify(hidden=apart.all(0), visible=(low == high).all(0))


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
            seen &= _cut(self.query_valid, query_start, query_size)[:, None, :, None]
        if self.key_valid is not None:
            seen &= _cut(self.key_valid, key_start, key_size)[:, None, None, :]
        return seen

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        query = _any_and_all(self.query_valid, query_edges)
        key = _any_and_all(self.key_valid, key_edges)
        return np.minimum(query[:, None], key[None, :])


@flax.struct.dataclass
class KeyLengths(Mask):
    """A row sees its first `lengths[b]` keys.

    Attributes:
      lengths: `[#B]` int.
    """

    lengths: Int[Array, " #B"]

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B 1 1 k"]:
        keys = key_start + jnp.arange(key_size, dtype=jnp.int32)
        return keys < jnp.asarray(self.lengths)[:, None, None, None]

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        if not isinstance(self.lengths, np.ndarray) or not self.lengths.size:
            return super().visibility(query_edges, key_edges)
        first, end = key_edges[:-1], key_edges[1:]
        key = _classify(hidden=first >= self.lengths.max(), visible=end <= self.lengths.min())
        return np.repeat(key[None, :], len(query_edges) - 1, axis=0)

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
        return _cut(_cut(self.array, key_start, key_size), query_start, query_size, axis=-2)

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        if not isinstance(self.array, np.ndarray):
            return super().visibility(query_edges, key_edges)
        shape = (*self.array.shape[:-2], query_edges[-1], key_edges[-1])
        seen = np.broadcast_to(self.array, shape).reshape(-1, *shape[-2:])
        blocks = np.add.reduceat(np.add.reduceat(seen.sum(0), query_edges[:-1], 0), key_edges[:-1], 1)
        full = seen.shape[0] * np.diff(query_edges)[:, None] * np.diff(key_edges)[None, :]
        return _classify(hidden=blocks == 0, visible=blocks == full)

    def pad(self, query_length: int, key_length: int) -> Mask:
        array = self.array if self.array.shape[-1] == 1 else _grow(self.array, key_length)
        return ArrayMask(array if array.shape[-2] == 1 else _grow(array, query_length, axis=-2))

    def validate(self, query_length: int, key_length: int) -> None:
        shape = self.array.shape
        if len(shape) < 2 or shape[-2] not in (1, query_length) or shape[-1] not in (1, key_length):
            raise ValueError(
                f"mask has shape {shape}; expected [#B #N #T #S] = (#B, #N, #{query_length}, #{key_length}), "
                "with size 1 allowed where # stands. Was it built for other lengths?"
            )


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

    parts: tuple[Mask, ...]

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        blocks = [part.block(query_start, query_size, key_start, key_size) for part in self.parts]
        return functools.reduce(jnp.logical_and, blocks)

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        return np.min([part.visibility(query_edges, key_edges) for part in self.parts], axis=0)


@flax.struct.dataclass
class Or(_Several):
    """Visible where any part says so. Written `a | b`."""

    parts: tuple[Mask, ...]

    def block(self, query_start: Start, query_size: int, key_start: Start, key_size: int) -> Bool[Array, "#B #N #q #k"]:
        blocks = [part.block(query_start, query_size, key_start, key_size) for part in self.parts]
        return functools.reduce(jnp.logical_or, blocks)

    def visibility(self, query_edges: Edges, key_edges: Edges) -> Int8[np.ndarray, "q k"]:
        return np.max([part.visibility(query_edges, key_edges) for part in self.parts], axis=0)


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


def as_mask(mask: Mask | Array | None) -> Mask | None:
    """A mask as google/flaxformer means it: symbolic, or an array in which an entry above 0 means "may see"."""
    if mask is None or isinstance(mask, Mask):
        return mask
    return ArrayMask(mask if mask.dtype == bool else mask > 0)


def combine(*masks: Mask | Array | None) -> Mask | None:
    """The conjunction of all masks that are given, None without any."""
    parts = [part for mask in masks if mask is not None for part in _parts(as_mask(mask), And)]
    return And(tuple(parts)) if len(parts) > 1 else next(iter(parts), None)


def describe(mask: Mask | Array, query_length: int, key_length: int, row: int = 0, head: int = 0) -> str:
    """The picture of one row of the batch and one head: a line per query, `x` for a key it sees, `.` for a hidden one."""
    picture = np.asarray(as_mask(mask).dense(query_length, key_length))
    picture = picture[row if picture.shape[0] > 1 else 0, head if picture.shape[1] > 1 else 0]
    return "\n".join("".join("x" if seen else "." for seen in line) for line in picture)


def _parts(mask: Mask, kind: type[_Several]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def _cut(array: Any, start: Start, size: int, axis: int = -1) -> Array:
    """`size` entries of an axis from `start` on; axes of size 1 stay."""
    array = jnp.asarray(array)
    if array.shape[axis] in (1, size) and (array.shape[axis] == 1 or isinstance(start, int)):
        return array
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def _grow(array: Any, length: int, axis: int = -1) -> Any:
    if array is None or array.shape[axis] == length:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return (np if isinstance(array, np.ndarray) else jnp).pad(array, widths, mode="edge")


def _positions(positions: Array | None, start: Start, size: int) -> Int[Array, "#B size"]:
    if positions is None:
        return start + jnp.arange(size, dtype=jnp.int32)[None, :]
    return _cut(positions, start, size)


def _row_ranges(array: Any, edges: Edges) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the greatest entry of every block `[#B n]`, None where trace time does not tell."""
    if not isinstance(array, np.ndarray):
        return None
    return tuple(reduce.reduceat(array, edges[:-1], axis=-1) for reduce in (np.minimum, np.maximum))


def _ranges(positions: Any, edges: Edges) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the greatest position of every block over all rows, None where trace time does not tell."""
    if positions is None:
        return edges[:-1], edges[1:] - 1
    ranges = _row_ranges(positions, edges)
    return ranges and (ranges[0].min(0), ranges[1].max(0))


def _any_and_all(flags: Any, edges: Edges) -> Int8[np.ndarray, " n"]:
    if flags is None:
        return np.full(len(edges) - 1, VISIBLE, np.int8)
    ranges = _row_ranges(flags, edges)
    if ranges is None:
        return np.full(len(edges) - 1, MIXED, np.int8)
    return _classify(hidden=~ranges[1].any(0), visible=ranges[0].all(0))


def _classify(hidden: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return np.where(hidden, HIDDEN, np.where(visible, VISIBLE, MIXED)).astype(np.int8)
