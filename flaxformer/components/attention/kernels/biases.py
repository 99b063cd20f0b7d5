"""What is added to attention logits: an array, or a rule that builds any rectangle of it on demand.

A lazy bias never exists as `[N T S]`. A kernel asks for the block it works on, and for the gradient of the few numbers
behind it. Where a rule gives one number for a whole block (`uniform`: T5's buckets far from the diagonal), the kernel
adds that number and no matrix at all. Some biases (`relative_keys`) are products with the queries, which are then
handed to the rule.

Glossary:

* *parameters*: the floating-point arrays of a bias, those that can have a gradient.
* `Place`: which rows, heads, queries and keys a block has.
* *positions*: where tokens stand; the offsets 0, 1, 2... until `at` binds others.

>>> bias = TableBias(jnp.array([[0.0, 1.0, 2.0, 3.0]]), bidirectional=False, max_distance=8)
>>> bias.dense(3, 3)[0, 0].astype(int)
Array([[0, 0, 0],
       [1, 0, 0],
       [2, 1, 0]], dtype=int32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, cast, overload

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flaxformer.components.attention.blocks import (
    Grid,
    Known,
    Place,
    Start,
    cut,
    grow,
    indices,
    position_ranges,
    positions_of,
)
from flaxformer.components.relative_position_biases import relative_bias, relative_position_bucket
from flaxformer.types import Array

Gradient: TypeAlias = Any
Queries: TypeAlias = Array | None  # [b n q H]


class Bias:
    """Base of all biases."""

    needs_query = False  # whether the rules look at the queries

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b #n #q #k"]:
        """What to add to the logits of one block.

        Args:
          place: the block.
          query: its queries `[b n q H]`, multiplied by the scale of the logits; only for a bias that `needs_query`.
        """
        raise NotImplementedError

    def uniform(self, grid: Grid) -> Bool[np.ndarray, "q k"]:
        """The blocks throughout which the bias of a head and query is one number, known while tracing."""
        return np.zeros((grid.query_count, grid.key_count), bool)

    def number(self, place: Place, query: Queries = None) -> Float[Array, "#b #n #q 1"]:
        """What to add in a uniform block."""
        raise NotImplementedError

    def at(self, query_positions: Int[Array, "#B T"] | None, key_positions: Int[Array, "#B S"] | None) -> Bias:
        """This bias for tokens at the given positions; biases that do not look at positions stay as they are."""
        return self

    def pad(self, query_length: int, key_length: int) -> Bias:
        """This bias for longer sequences. What it says about the added pairs means nothing."""
        return self

    def dense(self, query_length: int, key_length: int, query: Queries = None) -> Float[Array, "#B #N T S"]:
        """The whole bias; `query` as in `block`."""
        rows, heads = self.shape if query is None else query.shape[:2]
        block = self.block(Place(0, rows, 0, heads, 0, query_length, 0, key_length), query)
        return jnp.broadcast_to(block, (*block.shape[:2], query_length, key_length))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and heads of the bias, each 1 where all are alike."""
        raise NotImplementedError

    def validate(self, query_length: int, key_length: int) -> None:
        """Raises a ValueError unless the arrays inside fit queries and keys of these lengths."""

    def validate_width(self, width: int) -> None:
        """Raises a ValueError unless the arrays inside fit queries of this width, for a bias that `needs_query`."""

    def zero_gradient(self) -> Gradient:
        """Where `add_gradient` starts."""
        return [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in parameters(self)]

    def add_gradient(
        self,
        total: Gradient,
        scores: Float[Array, "b n q #k"],
        place: Place,
        uniform: bool = False,
        query: Queries = None,
    ) -> Gradient:
        """`total` and the gradient of the parameters that a block contributes.

        Args:
          total: the gradient so far.
          scores: the gradient of the block's logits, already summed over keys where `uniform`.
          place: the block.
          uniform: whether `number` rather than `block` was added.
          query: as in `block`.
        """
        kind = cast(Any, type(self))
        rule = kind.number if uniform else kind.block
        values, *rest = split(self)
        if uniform and not self.needs_query:
            scores = scores.sum(2, keepdims=True)
        _, pull = jax.vjp(
            lambda values: jnp.broadcast_to(rule(join(values, *rest), place, query), scores.shape), values
        )
        (gradient,) = pull(scores)
        return [so_far + more.astype(so_far.dtype) for so_far, more in zip(total, gradient, strict=True)]

    def query_gradient(
        self, scores: Float[Array, "b n q #k"], place: Place, query: Float[Array, "b n q H"], uniform: bool = False
    ) -> Float[Array, "b n q H"]:
        """What the bias of a block adds to the gradient of its queries; arguments as in `add_gradient`."""
        rule = self.number if uniform else self.block
        _, pull = jax.vjp(lambda query: jnp.broadcast_to(rule(place, query), scores.shape), query)
        return pull(scores)[0]

    def __add__(self, other: Bias | Array | None) -> Bias:
        return self if other is None else SumBias((self, as_bias(other)))


@flax.struct.dataclass
class ArrayBias(Bias):
    """A bias that is given as such.

    Attributes:
      array: `[#B #N #T #S]` floating point.
    """

    array: Float[Array, "#B #N #T #S"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b #n #q #k"]:
        x = self.array
        for axis, (start, size) in enumerate(_ranges_of(place)):
            x = cut(x, start, size, axis=axis)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def pad(self, query_length: int, key_length: int) -> Bias:
        array = self.array if self.array.shape[3] == 1 else grow(self.array, key_length, axis=3)
        return ArrayBias(array if array.shape[2] == 1 else grow(array, query_length, axis=2))

    def validate(self, query_length: int, key_length: int) -> None:
        shape = self.array.shape
        if len(shape) != 4 or shape[2] not in (1, query_length) or shape[3] not in (1, key_length):
            raise ValueError(
                f"bias has shape {shape}; expected [#B #N #T #S] = (#B, #N, #{query_length}, #{key_length}), "
                "with size 1 allowed where # stands. Was it built for other lengths?"
            )

    def add_gradient(
        self,
        total: Gradient,
        scores: Float[Array, "b n q #k"],
        place: Place,
        uniform: bool = False,
        query: Queries = None,
    ) -> Gradient:
        (so_far,) = total
        alike = tuple(axis for axis in range(4) if so_far.shape[axis] == 1)
        scores = scores.sum(alike, keepdims=True)
        starts = indices(*(0 if axis in alike else start for axis, (start, _) in enumerate(_ranges_of(place))))
        there = jax.lax.dynamic_slice(so_far, starts, scores.shape)
        return [jax.lax.dynamic_update_slice(so_far, there + scores, starts)]


class Positional(Bias):
    """What biases by position share: they own `query_positions` and `key_positions`."""

    query_positions: Int[Array, "#B T"] | None
    key_positions: Int[Array, "#B S"] | None

    def at(self, query_positions: Array | None, key_positions: Array | None) -> Bias:
        return dataclasses.replace(cast(Any, self), query_positions=query_positions, key_positions=key_positions)

    def pad(self, query_length: int, key_length: int) -> Bias:
        return self.at(grow(self.query_positions, query_length), grow(self.key_positions, key_length))

    @property
    def bound(self) -> bool:
        return self.query_positions is not None or self.key_positions is not None

    def positions(self, place: Place) -> tuple[Int[Array, "#b q"], Int[Array, "#b k"]]:
        """The positions of a block's queries and keys."""
        query = positions_of(self.query_positions, place.query, place.queries)
        key = positions_of(self.key_positions, place.key, place.keys)
        return cut(query, place.row, place.rows, axis=0), cut(key, place.row, place.rows, axis=0)

    def validate(self, query_length: int, key_length: int) -> None:
        for name, length in (("query_positions", query_length), ("key_positions", key_length)):
            positions = getattr(self, name)
            if positions is not None and (positions.ndim != 2 or positions.shape[1] != length):
                raise ValueError(
                    f"{type(self).__name__}.{name} has shape {positions.shape}; expected (#B, {length}). "
                    "Give one position per token, with a batch axis of size 1 where all rows agree."
                )

    def _rows(self) -> int:
        return max((x.shape[0] for x in (self.query_positions, self.key_positions) if x is not None), default=1)


@flax.struct.dataclass
class TableBias(Positional):
    """T5's bias: a learned number for each head and bucket of relative positions.

    Attributes:
      table: `[N buckets]`.
      bidirectional: whether keys after the query have buckets of their own (static).
      max_distance: distances from here on share a bucket (static).
      query_positions: `[#B T]` int, set by `at`. None: 0, 1, 2...
      key_positions: `[#B S]` int, likewise.

    Source: Raffel et al. 2020, section 2.1, https://arxiv.org/abs/1910.10683
    """

    table: Float[Array, "N buckets"]
    bidirectional: bool = flax.struct.field(pytree_node=False, default=True)
    max_distance: int = flax.struct.field(pytree_node=False, default=128)
    query_positions: Int[Array, "#B T"] | None = None
    key_positions: Int[Array, "#B S"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows(), self.table.shape[0]

    @property
    def _rule(self) -> dict[str, Any]:
        return {"bidirectional": self.bidirectional, "max_distance": self.max_distance}

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b n q k"]:
        table = self._heads(place)
        if self.bound:
            return relative_bias(table, *self.positions(place), **self._rule)
        columns = place.queries + place.keys
        column = jnp.arange(columns, dtype=jnp.int32)
        relative = place.key - place.query + jnp.where(column < place.keys, column, column - columns)
        return _diagonals(table[:, self._bucket(relative)], place.queries, place.keys)

    def uniform(self, grid: Grid) -> Bool[np.ndarray, "q k"]:
        if self.bound:
            return super().uniform(grid)
        query_low, query_high = position_ranges(None, grid.query_count, grid.query_size)
        key_low, key_high = position_ranges(None, grid.key_count, grid.key_size)
        # Buckets are monotone on either side of the diagonal, and differ between the sides.
        nearest = self._bucket(key_low[0][None] - query_high[0][:, None])
        furthest = self._bucket(key_high[0][None] - query_low[0][:, None])
        return cast(np.ndarray, nearest == furthest)

    def number(self, place: Place, query: Queries = None) -> Float[Array, "1 n 1 1"]:
        return self._heads(place)[None, :, self._bucket(jnp.asarray(place.key - place.query)), None, None]

    def _bucket(self, relative: Int[Known, "*n"]) -> Int[Known, "*n"]:
        return relative_position_bucket(relative, num_buckets=self.table.shape[-1], **self._rule)

    def _heads(self, place: Place) -> Float[Array, "n buckets"]:
        table = self.table.astype(jnp.promote_types(self.table.dtype, jnp.float32))
        return cut(table, place.head, place.heads, axis=0)


@flax.struct.dataclass
class AlibiBias(Positional):
    """`-slope * |key position - query position|`, one slope per head.

    Attributes:
      slopes: `[N]`.
      query_positions: `[#B T]` int, set by `at`. None: 0, 1, 2...
      key_positions: `[#B S]` int, likewise.

    Source: Press et al. 2022, "Train short, test long", https://arxiv.org/abs/2108.12409. There only keys before the
    query exist; keys after it are treated alike here.
    """

    slopes: Float[Array, " N"]
    query_positions: Int[Array, "#B T"] | None = None
    key_positions: Int[Array, "#B S"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows(), self.slopes.shape[0]

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b n q k"]:
        queries, keys = self.positions(place)
        distance = jnp.abs(keys[:, None, None, :] - queries[:, None, :, None]).astype(jnp.float32)
        slopes = self.slopes.astype(jnp.promote_types(self.slopes.dtype, jnp.float32))
        return -cut(slopes, place.head, place.heads, axis=0)[None, :, None, None] * distance


@flax.struct.dataclass
class FunctionBias(Positional):
    """Any function of two position vectors.

    Attributes:
      function: called as `function(values, query_positions [#b q], key_positions [#b k])`, gives `[#b N q k]` for
        blocks of any size (static; give the same function object each time, or the caller compiles anew).
      values: a pytree of arrays for it; those in floating point have gradients.
      heads: N.
    """

    function: Callable[[Any, Array, Array], Array] = flax.struct.field(pytree_node=False)
    values: Any
    heads: int = flax.struct.field(pytree_node=False)
    query_positions: Int[Array, "#B T"] | None = None
    key_positions: Int[Array, "#B S"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows(), self.heads

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b n q k"]:
        bias = self.function(self.values, *self.positions(place))
        return cut(bias, place.head, place.heads, axis=1).astype(jnp.promote_types(bias.dtype, jnp.float32))


@flax.struct.dataclass
class SumBias(Bias):
    """Several biases, added. Written `a + b`."""

    parts: tuple[Bias, ...]

    @property
    def needs_query(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.needs_query for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(max(sizes) for sizes in zip(*(part.shape for part in self.parts), strict=True))

    def block(self, place: Place, query: Queries = None) -> Float[Array, "#b #n #q #k"]:
        return sum((part.block(place, query) for part in self.parts[1:]), start=self.parts[0].block(place, query))

    def uniform(self, grid: Grid) -> Bool[np.ndarray, "q k"]:
        return np.all([part.uniform(grid) for part in self.parts], axis=0)

    def number(self, place: Place, query: Queries = None) -> Float[Array, "#b #n #q 1"]:
        return sum((part.number(place, query) for part in self.parts[1:]), start=self.parts[0].number(place, query))

    def at(self, query_positions: Array | None, key_positions: Array | None) -> Bias:
        return SumBias(tuple(part.at(query_positions, key_positions) for part in self.parts))

    def pad(self, query_length: int, key_length: int) -> Bias:
        return SumBias(tuple(part.pad(query_length, key_length) for part in self.parts))

    def validate(self, query_length: int, key_length: int) -> None:
        for part in self.parts:
            part.validate(query_length, key_length)

    def validate_width(self, width: int) -> None:
        for part in self.parts:
            part.validate_width(width)

    def zero_gradient(self) -> Gradient:
        return [zero for part in self.parts for zero in part.zero_gradient()]

    def add_gradient(
        self,
        total: Gradient,
        scores: Float[Array, "b n q #k"],
        place: Place,
        uniform: bool = False,
        query: Queries = None,
    ) -> Gradient:
        rest, added = list(total), []
        for part in self.parts:
            count = len(parameters(part))
            added += part.add_gradient(rest[:count], scores, place, uniform, query)
            rest = rest[count:]
        return added

    def query_gradient(
        self, scores: Float[Array, "b n q #k"], place: Place, query: Float[Array, "b n q H"], uniform: bool = False
    ) -> Float[Array, "b n q H"]:
        parts = [part.query_gradient(scores, place, query, uniform) for part in self.parts if part.needs_query]
        return sum(parts[1:], start=parts[0])


@overload
def as_bias(bias: None) -> None: ...


@overload
def as_bias(bias: Bias | Array) -> Bias: ...


def as_bias(bias: Bias | Array | None) -> Bias | None:
    """A bias as such, an array that broadcasts to `[B N T S]` as `ArrayBias`.

    Raises:
      ValueError: for arrays that are not floating point.
    """
    if bias is None or isinstance(bias, Bias):
        return bias
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(
            f"bias has dtype {bias.dtype}; expected floating point. Pass who may see whom as mask, not as bias."
        )
    bias = jnp.asarray(bias)
    return ArrayBias(bias.reshape((1,) * (4 - bias.ndim) + bias.shape))


def parameters(bias: Bias) -> list[Array]:
    """The arrays of a bias that can have a gradient."""
    return [x for x in jax.tree.leaves(bias) if jnp.issubdtype(x.dtype, jnp.floating)]


def split(bias: Bias | None) -> tuple[list[Array], list[Array], Any]:
    """The parameters of a bias, its other arrays, and what `join` needs to put them together (hashable)."""
    leaves, structure = jax.tree.flatten(bias)
    floating = tuple(bool(jnp.issubdtype(x.dtype, jnp.floating)) for x in leaves)
    values = [x for x, f in zip(leaves, floating, strict=True) if f]
    return values, [x for x, f in zip(leaves, floating, strict=True) if not f], (structure, floating)


def join(values: list[Array], others: list[Array], structure: Any) -> Bias | None:
    """The bias that `split` took apart, perhaps with other values."""
    tree, floating = structure
    value, other = iter(values), iter(others)
    return jax.tree.unflatten(tree, [next(value if f else other) for f in floating])


def _diagonals(row: Float[Array, "n q+k"], queries: int, keys: int) -> Float[Array, "1 n q k"]:
    """The matrix with constant diagonals whose entry (i, j) is `row[(j - i) % (q + k)]`.

    Repeated rows of length q + k, cut again into rows of length q + k - 1, shift by one from row to row: no gather, and
    the gradient is a sum over columns.
    """
    heads, columns = row.shape
    rows = jnp.broadcast_to(row[:, None], (heads, queries, columns)).reshape(heads, queries * columns)
    shifted = rows[:, : queries * (columns - 1)].reshape(heads, queries, columns - 1)
    return shifted[None, :, :, :keys]


def _ranges_of(place: Place) -> list[tuple[Start, int]]:
    return [(place.row, place.rows), (place.head, place.heads), (place.query, place.queries), (place.key, place.keys)]
