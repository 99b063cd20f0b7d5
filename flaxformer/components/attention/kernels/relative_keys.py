"""Shaw's relative keys as a lazy bias: a learned key for every distance, which queries are multiplied with.

    logits[i, j] = scale * query[i] · (key[j] + table[distance(i, j)])

The second product is a bias that needs the queries. Neither `[T S H]` nor, in a blockwise kernel, `[T S]` ever exists:
a block multiplies its queries with the keys of the q + k distances it spans, and slides the rows into place. Where all
distances of a block are clipped to the same one, the product is one number per query.

>>> bias = RelativeKeys(jnp.array([[1.0], [2.0], [3.0]]))  # one key each for distances -1, 0 and 1
>>> bias.dense(3, 3, query=jnp.ones((1, 1, 3, 1)))[0, 0].astype(int)
Array([[2, 3, 3],
       [1, 2, 3],
       [1, 1, 2]], dtype=int32)

Source: Shaw et al. 2018, "Self-attention with relative position representations", equation 5,
https://arxiv.org/abs/1803.02155; the sliding of rows is that of Huang et al. 2018, "Music Transformer",
https://arxiv.org/abs/1809.04281, section 3.4. Shaw's relative values are not part of it.
"""

from __future__ import annotations

from typing import cast

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flaxformer.components.attention.blocks import Grid, Known, Place, cut, position_ranges
from flaxformer.components.attention.kernels.biases import Positional, Queries
from flaxformer.types import Array


@flax.struct.dataclass
class RelativeKeys(Positional):
    """`query · table[distance]`, the distance from query to key clipped to those that the table has.

    Attributes:
      table: `[R H]` for all heads or `[R N H]`, in the order of distances: R = 2 * reach + 1 rows for -reach ... reach,
        or, where keys after the query need none, R rows for -(R - 1) ... 0.
      bidirectional: whether keys after the query have distances of their own; else all of them have 0 (static).
      query_positions: `[#B T]` int, set by `at`. None: 0, 1, 2...
      key_positions: `[#B S]` int, likewise.
    """

    table: Float[Array, "R H"] | Float[Array, "R N H"]
    bidirectional: bool = flax.struct.field(pytree_node=False, default=True)
    query_positions: Int[Array, "#B T"] | None = None
    key_positions: Int[Array, "#B S"] | None = None

    needs_query = True

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows(), self.table.shape[1] if self.table.ndim == 3 else 1

    def block(self, place: Place, query: Queries = None) -> Float[Array, "b n q k"]:
        query = _required(query)
        if self.bound:
            positions, key_positions = self.positions(place)
            rows = self._row(key_positions[:, None, None, :] - positions[:, None, :, None])  # [#b 1 q k]
            products = self._products(place, query, jnp.asarray(self.table))  # [b n q R]
            return jnp.take_along_axis(products, jnp.broadcast_to(rows, (*query.shape[:3], place.keys)), axis=-1)
        columns = place.queries + place.keys
        distances = place.key - place.query + jnp.arange(columns, dtype=jnp.int32) - (place.queries - 1)
        return _slide(self._products(place, query, jnp.asarray(self.table)[self._row(distances)]), place.keys)

    def uniform(self, grid: Grid) -> Bool[np.ndarray, "q k"]:
        if self.bound:
            return super().uniform(grid)
        query_low, query_high = position_ranges(None, grid.query_count, grid.query_size)
        key_low, key_high = position_ranges(None, grid.key_count, grid.key_size)
        nearest = self._row(key_low[0][None] - query_high[0][:, None])
        furthest = self._row(key_high[0][None] - query_low[0][:, None])
        return cast(np.ndarray, nearest == furthest)

    def number(self, place: Place, query: Queries = None) -> Float[Array, "b n q 1"]:
        row = self._row(jnp.asarray(place.key - place.query))
        return self._products(place, _required(query), jnp.asarray(self.table)[row][None])

    def validate(self, query_length: int, key_length: int) -> None:
        super().validate(query_length, key_length)
        rows, even = self.table.shape[0], self.table.shape[0] % 2 == 0
        if self.table.ndim not in (2, 3) or not rows or (self.bidirectional and even):
            raise ValueError(
                f"RelativeKeys.table has shape {self.table.shape}; expected [R H] or [R N H] with an odd R, one row "
                "for each distance from -reach to reach. For distances up to 0 alone, pass bidirectional=False."
            )

    def validate_width(self, width: int) -> None:
        if self.table.shape[-1] != width:
            raise ValueError(
                f"RelativeKeys.table has rows of width {self.table.shape[-1]}; expected {width}, the width of a query."
            )

    def _row(self, distances: Int[Known, "*n"]) -> Int[Known, "*n"]:
        last = self.table.shape[0] - 1
        middle = last // 2 if self.bidirectional else last
        return (distances + middle).clip(0, last)

    def _products(self, place: Place, query: Array, rows: Array) -> Float[Array, "b n q r"]:
        """Queries times rows of the table, in the queries' dtype."""
        rows = rows.astype(query.dtype)
        if rows.ndim == 2:
            return jnp.einsum("bnqh,rh->bnqr", query, rows)
        return jnp.einsum("bnqh,rnh->bnqr", query, cut(rows, place.head, place.heads, axis=1))


def _slide(products: Float[Array, "b n q q+k"], keys: int) -> Float[Array, "b n q k"]:
    """Entry (i, j) is `products[i, j - i + q - 1]`: cut into rows one shorter, rows shift by one from row to row."""
    *outer, queries, columns = products.shape
    flat = products.reshape(*outer, queries * columns)[..., queries - 1 : queries - 1 + queries * (columns - 1)]
    return flat.reshape(*outer, queries, columns - 1)[..., :keys]


def _required(query: Queries) -> Array:
    if query is None:
        raise ValueError("RelativeKeys needs the queries; got none. Pass query=, [B N T H] and already scaled.")
    return query
