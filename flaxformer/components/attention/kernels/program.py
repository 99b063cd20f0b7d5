"""The pieces from which the blockwise kernel's two passes are made.

A *program* works on a chunk of rows and key heads. Inside it arrays are heads first, and the query heads that share a
key head are rows of the same product: `[b k g*q H]` for a block of q queries and groups of g heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.blocks import Grid, Place, Start, cut, indices
from flaxformer.components.attention.kernels import biases, dropout, plan
from flaxformer.types import Array, Precision


class Setting(NamedTuple):
    """What is known while tracing.

    Attributes:
      grid: the blocks.
      length: T before it was padded to whole blocks.
      rows: rows of the batch per program.
      kv_heads: key heads per program.
      groups: G, query heads per key head.
      plain: whether there may be plain blocks (see `plan`).
      careful: whether there may be careful blocks.
      scale: see `request.Request`, likewise `softcap`, `dropout_rate`, `broadcast_dropout` and `precision`.
      bias: what `biases.join` needs.
    """

    grid: Grid
    length: int
    rows: int
    kv_heads: int
    groups: int
    plain: bool
    careful: bool
    scale: float
    softcap: float | None
    dropout_rate: float
    broadcast_dropout: bool
    precision: Precision
    bias: Any

    @property
    def heads(self) -> int:
        """Query heads per program."""
        return self.kv_heads * self.groups


class Data(NamedTuple):
    """Arrays without a gradient.

    Attributes:
      mask: padded to whole blocks.
      bias: the arrays of the bias that are no parameters.
      seeds: see `dropout.seeds_from`.
      visits: for blocks of queries the keys to visit, and for blocks of keys the queries.
    """

    mask: masks.Mask | None
    bias: list[Array]
    seeds: Array | None
    visits: tuple[plan.Visits, plan.Visits]


class Program(NamedTuple):
    """One chunk of rows and key heads, and how its blocks are made."""

    setting: Setting
    data: Data
    bias: biases.Bias | None
    row: Array
    kv_head: Array
    total_heads: int

    def place(self, i: Start, j: Start) -> Place:
        """Where the block of queries i and keys j stands."""
        setting, grid = self.setting, self.setting.grid
        head = self.kv_head * setting.groups
        query, key = i * grid.query_size, j * grid.key_size
        return Place(self.row, setting.rows, head, setting.heads, query, grid.query_size, key, grid.key_size)

    def logits(self, query: Array, key: Array) -> tuple[Array, Array | None]:
        """Scaled and capped products `[b n q k]`, and the derivative of the cap (None without one)."""
        setting, grid = self.setting, self.setting.grid
        logits = product("bkrh,bksh->bkrs", query, key, setting.precision)
        logits = logits.reshape(setting.rows, setting.heads, grid.query_size, grid.key_size)
        if not scales_query(query):
            logits = logits * setting.scale
        if setting.softcap is None:
            return logits, None
        bent = jnp.tanh(logits / setting.softcap)
        return setting.softcap * bent, 1 - bent**2

    def add_careful(self, logits: Array, place: Place, query: Array) -> Array:
        """The logits with bias and mask."""
        if self.bias is not None:
            logits = logits + self.bias.block(place, self.bias_query(query))
        if self.data.mask is not None:
            mask = jax.tree.map(lambda x: cut(x, place.row, place.rows, axis=0), self.data.mask)
            seen = mask.block(place.query, place.queries, place.key, place.keys)
            logits = jnp.where(cut(seen, place.head, place.heads, axis=1), logits, -jnp.inf)
        return logits

    def number(self, place: Place, query: Array) -> Array | float:
        """What a plain block adds to all its logits of one query, `[#b #n #q]`."""
        return 0.0 if self.bias is None else self.bias.number(place, self.bias_query(query))[..., 0]

    def bias_query(self, query: Float[Array, "b k g*q H"]) -> Array | None:
        """The queries `[b n q H]` as a bias wants them, if it does."""
        if self.bias is None or not self.bias.needs_query:
            return None
        setting = self.setting
        query = query.reshape(setting.rows, setting.heads, setting.grid.query_size, query.shape[-1])
        return query if scales_query(query) else query.astype(jnp.float32) * setting.scale

    def drop(self, weights: Array, place: Place) -> Array:
        """Dropout, the same for weights and for their gradients."""
        setting = self.setting
        if not setting.dropout_rate:
            return weights
        seeds, length = cast(Array, self.data.seeds), setting.length
        keep = dropout.kept(seeds, setting.dropout_rate, place, self.total_heads, length, setting.broadcast_dropout)
        return jnp.where(keep, weights / (1 - setting.dropout_rate), 0)

    def visits(self, which: int, block: Array) -> tuple[Array, Array, Array]:
        """The list of blocks to visit from `block`, and the counts of plain and careful ones."""
        chunk = self.row // self.setting.rows
        order, plain, careful = (x[chunk if x.shape[0] > 1 else 0] for x in map(jnp.asarray, self.data.visits[which]))
        return order[block], plain[block], careful[block]

    def loop(self, which: int, block: Array, body: Any, carry: Any) -> Any:
        """`carry = body(other block, carry, careful)` for all visited blocks."""
        order, plain, careful = self.visits(which, block)
        if self.setting.plain:
            carry = lax.fori_loop(0, plain, lambda n, carry: body(order[n], carry, False), carry)
        if self.setting.careful:
            carry = lax.fori_loop(plain, plain + careful, lambda n, carry: body(order[n], carry, True), carry)
        return carry


def run_programs(setting: Setting, batch: int, num_heads: int, bias, data: Data, run: Any, carry: Any) -> Any:
    """`carry = run(program, carry)` for all chunks of rows and key heads."""
    head_chunks = num_heads // setting.groups // setting.kv_heads
    bias = biases.join(bias, data.bias, setting.bias)

    def body(n, carry):
        row, kv_head = n // head_chunks * setting.rows, n % head_chunks * setting.kv_heads
        return run(Program(setting, data, bias, row, kv_head, num_heads), carry)

    return loop(batch // setting.rows * head_chunks, body, carry)


def loop(count: int, body: Any, carry: Any) -> Any:
    """`carry = body(n, carry)` for n below `count`."""
    return body(0, carry) if count == 1 else lax.fori_loop(0, count, body, carry)


def heads_first(program: Program, x: Float[Array, "B L M H"], heads: int) -> Float[Array, "b m L H"]:
    """The program's rows and heads of an array, heads first."""
    head = program.kv_head * (heads // program.setting.kv_heads)
    part = lax.dynamic_slice(x, indices(program.row, 0, head, 0), (program.setting.rows, x.shape[1], heads, x.shape[3]))
    return _compute(part.swapaxes(1, 2))


def query_rows(program: Program, query: Float[Array, "B T N H"], i: Array) -> Float[Array, "b k g*q H"]:
    """The program's part of one block of queries."""
    place = program.place(i, 0)
    sizes = (place.rows, place.queries, place.heads, query.shape[3])
    block = lax.dynamic_slice(query, indices(place.row, place.query, place.head, 0), sizes)
    return _compute(block.swapaxes(1, 2)).reshape(place.rows, program.setting.kv_heads, -1, query.shape[3])


def key_rows(program: Program, x: Float[Array, "B S K H"], j: Array) -> Float[Array, "b k s H"]:
    """The program's part of one block of keys or values."""
    setting, size = program.setting, program.setting.grid.key_size
    sizes = (setting.rows, size, setting.kv_heads, x.shape[3])
    return _compute(lax.dynamic_slice(x, indices(program.row, j * size, program.kv_head, 0), sizes).swapaxes(1, 2))


def fold(setting: Setting, x: Float[Array, "b n T H"]) -> Float[Array, "b k i g*q H"]:
    """Blocks of queries, with the heads of a group among their rows."""
    grid = setting.grid
    x = x.reshape(setting.rows, setting.kv_heads, setting.groups, grid.query_count, grid.query_size, x.shape[-1])
    return x.swapaxes(2, 3).reshape(setting.rows, setting.kv_heads, grid.query_count, -1, x.shape[-1])


def unfold(setting: Setting, x: Float[Array, "b k i g*q H"]) -> Float[Array, "b T n H"]:
    """Undoes `fold`, lengths first."""
    grid = setting.grid
    x = x.reshape(setting.rows, setting.kv_heads, grid.query_count, setting.groups, grid.query_size, x.shape[-1])
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(setting.rows, -1, setting.heads, x.shape[-1])


def scaled(setting: Setting, query: Array) -> Array:
    """Queries with the scale applied, unless it is the logits' turn."""
    return query * setting.scale if scales_query(query) else query


def scales_query(query: Array) -> bool:
    """Whether the scale is applied to queries; in half precision that would round them, so the logits are scaled."""
    return jnp.finfo(query.dtype).bits >= 32


def _compute(x: Array) -> Array:
    """In the dtype of the products: a CPU multiplies no faster in half precision than in float32."""
    narrow = jax.default_backend() != "cpu"
    return x if narrow else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def product(equation: str, a: Array, b: Array, precision: Precision) -> Array:
    """A matrix product in the dtype of the operand that came from outside, summed in at least float32."""
    narrow = b.dtype if jnp.finfo(b.dtype).bits < jnp.finfo(a.dtype).bits else a.dtype
    wide = jnp.promote_types(narrow, jnp.float32)
    return jnp.einsum(equation, a.astype(narrow), b.astype(narrow), precision=precision, preferred_element_type=wide)
