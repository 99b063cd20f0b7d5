"""Exact attention in linear memory, in plain JAX, on any platform.

Scores exist one block at a time. The forward pass keeps a running maximum, denominator and weighted sum per query, and
saves only the output and the logarithm of the denominator. The backward pass makes each block of weights again from
those. `plan` says which blocks are visited and which of them need mask and bias.

Per program (a chunk of rows and key heads; see `plan.chunk_for`):

    forward:  for each block of queries i          backward: for each block of keys j
                for each visited block of keys j               for each visited block of queries i
                  update maximum, sum, output                    dV_j, dK_j (kept at hand), dQ_i (added in place)

Source: Milakov & Gimelshein 2018 (running softmax), https://arxiv.org/abs/1805.02867; Rabe & Staats 2021 (linear
memory), https://arxiv.org/abs/2112.05682; Dao et al. 2022 (FlashAttention), https://arxiv.org/abs/2205.14135. The loops
here are ordinary XLA loops, their bounds may depend on data (skipping of padding and segments), and biases are built
and differentiated per block.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.blocks import Grid, Place, cut, indices
from flaxformer.components.attention.kernels import biases, dropout, plan, request
from flaxformer.types import Array, Precision


def attend_blockwise(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    *,
    return_residuals: bool = False,
    query_block: int | None = None,
    key_block: int | None = None,
    **options: Any,
) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B N T"]]:
    """Attends block by block; what it computes is `attend_reference`.

    Args:
      query: `[B T N H]`.
      key: `[B S K H]`, N a multiple of K; keys are not repeated.
      value: `[B S K V]`.
      return_residuals: return also the logarithm of the softmax's denominator, `[B N T]`.
      query_block: queries per block. None: see `plan.grid_for`.
      key_block: keys per block, likewise.
      **options: `mask`, `bias`, `scale`, `softcap`, `sinks`, `dropout_rate`, `dropout_rng`, `broadcast_dropout` and
        `precision`, see `flaxformer.components.attention.backends.attend`.

    Returns:
      `[B T N V]` in the query's dtype. A row that may see nothing is zero, and so are its gradients.

    It can be differentiated once, in reverse; products are summed in float32, and on a CPU computed in it.
    """
    asked = request.check(query, key, value, **options)
    batch, length, num_heads, _ = query.shape
    if 0 in (batch, length, num_heads, key.shape[1], key.shape[3], value.shape[3]):
        output, log_sum_exp = _nothing(asked)
    else:
        output, log_sum_exp = _attend_padded(asked, query_block, key_block)
    return (output, log_sum_exp) if return_residuals else output


def _nothing(asked: request.Request) -> tuple[Array, Array]:
    """The result when there is no key or no query at all."""
    batch, length, num_heads, _ = asked.query.shape
    sinks = jnp.full(num_heads, -jnp.inf) if asked.sinks is None else asked.sinks.astype(jnp.float32)
    log_sum_exp = jnp.broadcast_to(sinks[None, :, None], (batch, num_heads, length))
    return jnp.zeros((batch, length, num_heads, asked.value.shape[-1]), asked.query.dtype), log_sum_exp


def _attend_padded(asked: request.Request, query_block: int | None, key_block: int | None) -> tuple[Array, Array]:
    """Makes lengths multiples of the blocks and the plan of visits, and runs the loops."""
    batch, length, num_heads, _ = asked.query.shape
    key_length, kv_heads = asked.key.shape[1:3]
    grid = plan.grid_for(length, key_length, num_heads // kv_heads, query_block, key_block)
    padded = grid.query_count * grid.query_size, grid.key_count * grid.key_size
    mask = asked.mask
    if padded[1] > key_length:
        mask = masks.combine(mask, masks.KeyLengths(np.array([key_length])))
    mask = mask and mask.pad(*padded)
    bias = asked.bias and asked.bias.pad(*padded)
    groups = num_heads // kv_heads
    rows, heads = plan.chunk_for(batch, kv_heads, groups * grid.query_size * grid.key_size)
    kinds = plan.kinds(grid, mask, bias, rows)
    values, others, structure = _split(bias)
    setting = _Setting(
        grid=grid,
        length=length,
        rows=rows,
        kv_heads=heads,
        groups=groups,
        plain=plan.may_hold(kinds, plan.PLAIN) and (bias is None or bool(bias.uniform(grid).any())),
        careful=plan.may_hold(kinds, plan.CAREFUL),
        scale=asked.scale,
        softcap=asked.softcap,
        dropout_rate=asked.dropout_rate,
        broadcast_dropout=asked.broadcast_dropout,
        precision=asked.precision,
        bias=structure,
    )
    visits = plan.visits(kinds), plan.visits(kinds.swapaxes(1, 2))
    data = _Data(mask, others, asked.seeds, visits)
    query, key, value = (
        x if x.shape[1] == size else jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0)))
        for x, size in ((asked.query, padded[0]), (asked.key, padded[1]), (asked.value, padded[1]))
    )
    output, log_sum_exp = _attend(setting, query, key, value, values, asked.sinks, data)
    return output[:, :length], log_sum_exp[:, :, :length]


class _Setting(NamedTuple):
    """What is known while tracing."""

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
        return self.kv_heads * self.groups


class _Data(NamedTuple):
    """Arrays without a gradient."""

    mask: masks.Mask | None
    bias: list[Array]
    seeds: Array | None
    visits: tuple[plan.Visits, plan.Visits]


class _Program(NamedTuple):
    """One chunk of rows and key heads, and how its blocks are made."""

    setting: _Setting
    data: _Data
    bias: biases.Bias | None
    row: Array
    kv_head: Array
    total_heads: int

    def place(self, i: Array, j: Array) -> Place:
        setting, grid = self.setting, self.setting.grid
        head = self.kv_head * setting.groups
        query, key = i * grid.query_size, j * grid.key_size
        return Place(self.row, setting.rows, head, setting.heads, query, grid.query_size, key, grid.key_size)

    def logits(self, query: Array, key: Array) -> tuple[Array, Array]:
        """Scaled and capped products `[b n q k]`, and the derivative of the cap (None without one)."""
        setting, grid = self.setting, self.setting.grid
        logits = _product("bkrh,bksh->bkrs", query, key, setting.precision)
        logits = logits.reshape(setting.rows, setting.heads, grid.query_size, grid.key_size)
        if not _scales_query(query):
            logits = logits * setting.scale
        if setting.softcap is None:
            return logits, None
        bent = jnp.tanh(logits / setting.softcap)
        return setting.softcap * bent, 1 - bent**2

    def add_careful(self, logits: Array, place: Place) -> Array:
        """The logits with bias and mask."""
        if self.bias is not None:
            logits = logits + self.bias.block(place)
        if self.data.mask is not None:
            mask = jax.tree.map(lambda x: cut(x, place.row, place.rows, axis=0), self.data.mask)
            seen = mask.block(place.query, place.queries, place.key, place.keys)
            logits = jnp.where(cut(seen, place.head, place.heads, axis=1), logits, -jnp.inf)
        return logits

    def number(self, place: Place) -> Array | float:
        """What a plain block adds to all its logits of one query, `[#b #n 1]`."""
        return 0.0 if self.bias is None else self.bias.number(place)[..., 0]

    def drop(self, weights: Array, place: Place) -> Array:
        """Dropout, the same for weights and for their gradients."""
        setting = self.setting
        if not setting.dropout_rate:
            return weights
        keep = dropout.kept(
            self.data.seeds, setting.dropout_rate, place, self.total_heads, setting.length, setting.broadcast_dropout
        )
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting: _Setting, query, key, value, bias, sinks, data: _Data) -> tuple[Array, Array]:
    output, log_sum_exp = _forward(setting, query, key, value, bias, sinks, data)
    return output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)


def _attend_forward(setting: _Setting, query, key, value, bias, sinks, data):
    """The forward pass under differentiation; arguments come with a flag that says whether a gradient is wanted."""
    bias_wanted = any(x.perturbed for x in jax.tree.leaves(bias, is_leaf=_is_primal))
    query, key, value, bias, sinks, data = jax.tree.map(
        lambda x: x.value, (query, key, value, bias, sinks, data), is_leaf=_is_primal
    )
    output, log_sum_exp = _forward(setting, query, key, value, bias, sinks, data)
    kept = (query, key, value, bias, sinks, data, output, log_sum_exp, _Static(bias_wanted))
    return (output, jnp.where(jnp.isinf(log_sum_exp), -jnp.inf, log_sum_exp)), kept


def _attend_backward(setting: _Setting, kept, cotangents):
    query, key, value, bias, sinks, data, output, log_sum_exp, bias_wanted = kept
    d_output, d_log_sum_exp = cotangents
    if _is_zero(d_output):
        d_output = jnp.zeros(output.shape, output.dtype)
    wide = log_sum_exp.dtype
    delta = jnp.einsum("btnv,btnv->bnt", d_output, output, preferred_element_type=wide)
    if not _is_zero(d_log_sum_exp):
        delta -= jnp.where(jnp.isinf(log_sum_exp), 0, d_log_sum_exp)
    d_query, d_key, d_value, d_bias = _backward(
        setting, query, key, value, bias, data, d_output, log_sum_exp, delta, bias_wanted.value
    )
    d_bias = [g.astype(x.dtype) for g, x in zip(d_bias, bias, strict=True)] if bias_wanted.value else None
    d_sinks = None
    if sinks is not None:
        weights = jnp.exp(sinks.astype(wide)[:, None] - log_sum_exp)
        d_sinks = -(weights * delta).sum((0, 2)).astype(sinks.dtype)
    return d_query, d_key, d_value, d_bias, d_sinks, None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _forward(setting: _Setting, query, key, value, bias, sinks, data) -> tuple[Array, Array]:
    """Output `[B T N V]` and log-sum-exp `[B N T]`, +inf in rows that see nothing."""
    batch, length, num_heads, _ = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    output = jnp.zeros((batch, length, num_heads, value.shape[-1]), query.dtype)
    log_sum_exp = jnp.zeros((batch, num_heads, length), wide)
    grid = setting.grid

    def run(program: _Program, carry):
        keys, values = (_heads(program, x, setting.kv_heads) for x in (key, value))  # [b k S H]

        def query_block(i, carry):
            output, log_sum_exp = carry
            x, lse = _attend_query_block(program, i, query, keys, values, sinks)
            place = program.place(i, 0)
            output = lax.dynamic_update_slice(
                output, x.astype(output.dtype), indices(place.row, place.query, place.head, 0)
            )
            log_sum_exp = lax.dynamic_update_slice(log_sum_exp, lse, indices(place.row, place.head, place.query))
            return output, log_sum_exp

        return _loop(grid.query_count, query_block, carry)

    return _programs(setting, batch, num_heads, bias, data, run, (output, log_sum_exp))


def _attend_query_block(program: _Program, i, query, keys, values, sinks) -> tuple[Array, Array]:
    """One block of queries against all keys it visits: `[b q n V]` and `[b n q]`."""
    setting, grid = program.setting, program.setting.grid
    rows, heads, queries, width = setting.rows, setting.heads, grid.query_size, values.shape[-1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    q = _scaled(setting, _query_rows(program, query, i))

    def visit(j, carry, careful):
        highest, total, x = carry  # [b n q], [b n q], [b k g*q V]
        place = program.place(i, j)
        logits, _ = program.logits(q, cut(keys, place.key, place.keys, axis=2))
        if careful:
            logits, number = program.add_careful(logits, place), 0.0
        else:
            number = program.number(place)
        new_highest = jnp.maximum(highest, logits.max(-1) + number)
        weights = jnp.exp(logits - (new_highest - number)[..., None])
        shrink = jnp.exp(highest - new_highest)
        total = total * shrink + weights.sum(-1)
        weights = program.drop(weights, place).reshape(rows, setting.kv_heads, -1, grid.key_size)
        more = _product("bkrs,bksv->bkrv", weights, cut(values, place.key, place.keys, axis=2), setting.precision)
        return new_highest, total, x * shrink.reshape(*x.shape[:-1], 1) + more

    highest = jnp.full((rows, heads, queries), jnp.finfo(wide).min, wide)
    total = jnp.zeros_like(highest)
    if sinks is not None:
        sinks = cut(sinks.astype(wide), program.kv_head * setting.groups, heads)
        highest = jnp.maximum(highest, sinks[:, None])
        total = jnp.exp(sinks[:, None] - highest)
    x = jnp.zeros((rows, setting.kv_heads, setting.groups * queries, width), wide)
    highest, total, x = program.loop(0, i, visit, (highest, total, x))
    blind = total == 0
    total = jnp.where(blind, 1, total)
    x = x.reshape(rows, heads, queries, width) / total[..., None]
    return x.swapaxes(1, 2), jnp.where(blind, jnp.inf, highest + jnp.log(total))


def _backward(setting: _Setting, query, key, value, bias, data, d_output, log_sum_exp, delta, bias_wanted: bool):
    """Gradients of query, key, value and the bias' parameters."""
    batch, _, num_heads, _ = query.shape
    grid, groups = setting.grid, setting.groups
    bias_zero = _join(bias, data.bias, setting.bias).zero_gradient() if bias_wanted else []

    def run(program: _Program, carry):
        head = program.kv_head * groups
        queries = _scaled(setting, _fold(setting, _heads(program, query, setting.heads)))  # [b k i g*q H]
        d_outputs = _fold(setting, _heads(program, d_output, setting.heads))  # [b k i g*q V]
        rows = _Rows(
            queries,
            d_outputs,
            *(
                lax.dynamic_slice(x, indices(program.row, head, 0), (setting.rows, setting.heads, x.shape[2]))
                for x in (log_sum_exp, delta)
            ),
        )

        def key_block(j, carry):
            d_query, d_key, d_value, d_bias, d_queries = carry
            d_keys, d_values, d_queries, d_bias = _differentiate_key_block(
                program, j, rows, key, value, d_queries, d_bias, bias_wanted
            )
            start = indices(program.row, j * grid.key_size, program.kv_head, 0)
            d_key = lax.dynamic_update_slice(d_key, d_keys.swapaxes(1, 2).astype(key.dtype), start)
            d_value = lax.dynamic_update_slice(d_value, d_values.swapaxes(1, 2).astype(value.dtype), start)
            return d_query, d_key, d_value, d_bias, d_queries

        d_queries = jnp.zeros(queries.shape, log_sum_exp.dtype)
        *carry, d_queries = _loop(grid.key_count, key_block, (*carry, d_queries))
        d_query, d_key, d_value, d_bias = carry
        if _scales_query(queries):
            d_queries *= setting.scale
        update = _unfold(setting, d_queries).astype(query.dtype)
        d_query = lax.dynamic_update_slice(d_query, update, indices(program.row, 0, head, 0))
        return d_query, d_key, d_value, d_bias

    zeros = (*(jnp.zeros(x.shape, x.dtype) for x in (query, key, value)), bias_zero)
    return _programs(setting, batch, num_heads, bias, data, run, zeros)


class _Rows(NamedTuple):
    """What the backward pass reads per query of one program."""

    query: Array  # [b k i g*q H], scaled
    d_output: Array  # [b k i g*q V]
    log_sum_exp: Array  # [b n T]
    delta: Array  # [b n T]


def _differentiate_key_block(program: _Program, j, rows: _Rows, key, value, d_queries, d_bias, bias_wanted: bool):
    """Gradients of one block of keys and values `[b k s H]`, and what it adds to those of queries and bias."""
    setting, grid = program.setting, program.setting.grid
    precision = setting.precision
    keys, values = (_key_rows(program, x, j) for x in (key, value))

    def visit(i, carry, careful):
        d_keys, d_values, d_queries, d_bias = carry
        place = program.place(i, j)
        q, d_x = (lax.dynamic_index_in_dim(x, i, 2, keepdims=False) for x in (rows.query, rows.d_output))
        log_sum_exp, delta = (cut(x, place.query, place.queries) for x in (rows.log_sum_exp, rows.delta))
        logits, slope = program.logits(q, keys)
        number = 0.0 if careful else program.number(place)
        if careful:
            logits = program.add_careful(logits, place)
        weights = jnp.exp(logits - (log_sum_exp - number)[..., None])
        folded = (setting.rows, setting.kv_heads, -1, grid.key_size)
        dropped = program.drop(weights, place).reshape(folded)
        d_values += _product("bkrs,bkrv->bksv", dropped, d_x, precision)
        d_weights = _product("bkrv,bksv->bkrs", d_x, values, precision).reshape(weights.shape)
        d_logits = weights * (program.drop(d_weights, place) - delta[..., None])
        if bias_wanted:
            d_bias = program.bias.add_gradient(
                d_bias, d_logits if careful else d_logits.sum((2, 3), keepdims=True), place, uniform=not careful
            )
        if slope is not None:
            d_logits *= slope
        if not _scales_query(q):
            d_logits *= setting.scale
        d_logits = d_logits.reshape(folded)
        d_keys += _product("bkrs,bkrh->bksh", d_logits, q, precision)
        more = lax.dynamic_index_in_dim(d_queries, i, 2, keepdims=False)
        more += _product("bkrs,bksh->bkrh", d_logits, keys, precision)
        return d_keys, d_values, lax.dynamic_update_index_in_dim(d_queries, more, i, 2), d_bias

    d_keys, d_values = (jnp.zeros(x.shape, d_queries.dtype) for x in (keys, values))
    return program.loop(1, j, visit, (d_keys, d_values, d_queries, d_bias))


def _programs(setting: _Setting, batch: int, num_heads: int, bias, data: _Data, run: Any, carry: Any) -> Any:
    """`carry = run(program, carry)` for all chunks of rows and key heads."""
    head_chunks = num_heads // setting.groups // setting.kv_heads
    bias = _join(bias, data.bias, setting.bias)

    def body(n, carry):
        row, kv_head = n // head_chunks * setting.rows, n % head_chunks * setting.kv_heads
        return run(_Program(setting, data, bias, row, kv_head, num_heads), carry)

    return _loop(batch // setting.rows * head_chunks, body, carry)


def _loop(count: int, body: Any, carry: Any) -> Any:
    return body(0, carry) if count == 1 else lax.fori_loop(0, count, body, carry)


def _heads(program: _Program, x: Float[Array, "B L M H"], heads: int) -> Float[Array, "b m L H"]:
    """The program's rows and heads of an array, heads first."""
    head = program.kv_head * (heads // program.setting.kv_heads)
    part = lax.dynamic_slice(x, indices(program.row, 0, head, 0), (program.setting.rows, x.shape[1], heads, x.shape[3]))
    return _compute(part.swapaxes(1, 2))


def _query_rows(program: _Program, query: Float[Array, "B T N H"], i: Array) -> Float[Array, "b k g*q H"]:
    place = program.place(i, 0)
    sizes = (place.rows, place.queries, place.heads, query.shape[3])
    block = lax.dynamic_slice(query, indices(place.row, place.query, place.head, 0), sizes)
    return _compute(block.swapaxes(1, 2)).reshape(place.rows, program.setting.kv_heads, -1, query.shape[3])


def _key_rows(program: _Program, x: Float[Array, "B S K H"], j: Array) -> Float[Array, "b k s H"]:
    setting, size = program.setting, program.setting.grid.key_size
    sizes = (setting.rows, size, setting.kv_heads, x.shape[3])
    return _compute(lax.dynamic_slice(x, indices(program.row, j * size, program.kv_head, 0), sizes).swapaxes(1, 2))


def _fold(setting: _Setting, x: Float[Array, "b n T H"]) -> Float[Array, "b k i g*q H"]:
    """Blocks of queries, with the heads of a group among their rows."""
    grid = setting.grid
    x = x.reshape(setting.rows, setting.kv_heads, setting.groups, grid.query_count, grid.query_size, x.shape[-1])
    return x.swapaxes(2, 3).reshape(setting.rows, setting.kv_heads, grid.query_count, -1, x.shape[-1])


def _unfold(setting: _Setting, x: Float[Array, "b k i g*q H"]) -> Float[Array, "b T n H"]:
    grid = setting.grid
    x = x.reshape(setting.rows, setting.kv_heads, grid.query_count, setting.groups, grid.query_size, x.shape[-1])
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(setting.rows, -1, setting.heads, x.shape[-1])


def _scaled(setting: _Setting, query: Array) -> Array:
    return query * setting.scale if _scales_query(query) else query


def _scales_query(query: Array) -> bool:
    """Whether the scale is applied to queries; in half precision that would round them, so the logits are scaled."""
    return jnp.finfo(query.dtype).bits >= 32


def _compute(x: Array) -> Array:
    """In the dtype of the products: a CPU multiplies no faster in half precision than in float32."""
    narrow = jax.default_backend() != "cpu"
    return x if narrow else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _product(equation: str, a: Array, b: Array, precision: Precision) -> Array:
    """A matrix product in the dtype of the operand that came from outside, summed in at least float32."""
    narrow = b.dtype if jnp.finfo(b.dtype).bits < jnp.finfo(a.dtype).bits else a.dtype
    wide = jnp.promote_types(narrow, jnp.float32)
    return jnp.einsum(equation, a.astype(narrow), b.astype(narrow), precision=precision, preferred_element_type=wide)


class _Static:
    """A value that travels with arrays but is known while tracing."""

    def __init__(self, value: Any):
        self.value = value


jax.tree_util.register_pytree_node(_Static, lambda x: ((), x.value), lambda value, _: _Static(value))


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _split(bias: biases.Bias | None) -> tuple[list[Array], list[Array], Any]:
    """Parameters, other arrays, and what puts them together again (hashable)."""
    leaves, structure = jax.tree.flatten(bias)
    floating = tuple(bool(jnp.issubdtype(x.dtype, jnp.floating)) for x in leaves)
    values = [x for x, f in zip(leaves, floating, strict=True) if f]
    return values, [x for x, f in zip(leaves, floating, strict=True) if not f], (structure, floating)


def _join(values: list[Array], others: list[Array], structure: Any) -> biases.Bias | None:
    tree, floating = structure
    values, others = iter(values), iter(others)
    return jax.tree.unflatten(tree, [next(values if f else others) for f in floating])
