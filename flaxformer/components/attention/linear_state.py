"""Attention by features in linear time: keys and values are summed into a state, and queries read it.

    state:  Σ_s φ(k_s) v_sᵀ  and  Σ_s φ(k_s)          read:  φ(q)ᵀ Σ φ(k) vᵀ  /  φ(q)ᵀ Σ φ(k)

The size of the state does not depend on the length, and so it is all that decoding has to remember. Causal attention
goes through the sequence in chunks: a chunk reads the state of those before it, attends within itself, and joins it.

Every feature of the state is kept relative to its greatest key so far, as a running softmax keeps its maximum: the
denominator of a query is then at least 1, whatever the size of queries and keys, and nothing has to be added to it.
Only within a chunk a query may meet a denominator below that, where keys after it are greater; below 1e-30 of it the
query reads zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from flaxformer.types import Array

Features = Callable[[Array], Array]  # [... H] -> [... M], logarithms

_NO_KEY = -1e30  # below the logarithm of any feature, and finite: differences of it stay numbers
_NOTHING = 1e-30  # of the greatest key's weight; the gradient of a division by less would overflow


class State(NamedTuple):
    """What is remembered of keys and values.

    Attributes:
      values: `[B K M V]`, the sum of `exp(log φ(k) - highest) v`.
      weights: `[B K M]`, the sum of `exp(log φ(k) - highest)`.
      highest: `[B K M]`, the greatest `log φ(k)`.
    """

    values: Float[Array, "B K M V"]
    weights: Float[Array, "B K M"]
    highest: Float[Array, "B K M"]


class Chunk(NamedTuple):
    """Some consecutive tokens: queries `[B c N H]`, keys `[B c K H]`, values `[B c K V]`, valid `[#B c]`."""

    query: Array
    key: Array
    value: Array
    valid: Array


def empty_state(key: Float[Array, "B S K H"], value: Float[Array, "B S K V"], features: Features) -> State:
    """The state before the first of such keys and values."""
    logs = jax.eval_shape(features, key)
    weights = jnp.zeros((*logs.shape[:1], *logs.shape[2:]), logs.dtype)
    return State(jnp.zeros((*weights.shape, value.shape[-1]), logs.dtype), weights, jnp.full_like(weights, _NO_KEY))


def attend_all(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    valid: Bool[Array, "#B S"],
    features: Features,
    state: State,
    chunk_size: int,
) -> tuple[Float[Array, "B T N V"], State]:
    """Every query reads every valid key, and what the state holds."""
    state = absorb_all(key, value, valid, features, state, chunk_size)
    return read_all(query, features, state, chunk_size), state


def attend_causally(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    valid: Bool[Array, "#B T"],
    features: Features,
    state: State,
    chunk_size: int,
) -> tuple[Float[Array, "B T N V"], State]:
    """Every query reads the valid keys up to its own, and what the state holds."""

    def step(state: State, chunk: Chunk) -> tuple[State, Array]:
        query, key_features, value, rescaled = *chunk[:1], *_absorbed(chunk, features, state)
        reading = _reading(query, features, rescaled)  # [B c K G M]
        scores = jnp.einsum("btkgm,bskm->bkgts", reading, key_features)
        scores *= jnp.tri(scores.shape[-1], dtype=scores.dtype)
        sums = jnp.einsum("bkgts,bskv->btkgv", scores, value) + _product(reading, rescaled.values)
        total = jnp.moveaxis(scores.sum(-1), -1, 1) + _product(reading, rescaled.weights)
        return _joined(rescaled, key_features, value), _divide(sums, total, query)

    return _over_chunks(step, state, Chunk(query, key, value, valid), chunk_size)


def absorb_all(
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    valid: Bool[Array, "#B S"],
    features: Features,
    state: State,
    chunk_size: int,
) -> State:
    """The state after these keys and values."""

    def step(state: State, chunk: Chunk) -> tuple[State, Array]:
        key_features, value, rescaled = _absorbed(chunk, features, state)
        return _joined(rescaled, key_features, value), jnp.zeros((chunk.key.shape[0], chunk.key.shape[1], 0))

    return _over_chunks(step, state, Chunk(key, key, value, valid), chunk_size)[1]


def read_all(
    query: Float[Array, "B T N H"], features: Features, state: State, chunk_size: int
) -> Float[Array, "B T N V"]:
    """What each query reads from the state; zero where that is empty."""

    def step(state: State, chunk: Chunk) -> tuple[State, Array]:
        reading = _reading(chunk.query, features, state)
        total = _product(reading, state.weights)
        return state, _divide(_product(reading, state.values), total, chunk.query)

    valid = jnp.ones((1, query.shape[1]), bool)
    return _over_chunks(step, state, Chunk(query, query, query, valid), chunk_size)[0]


def _absorbed(chunk: Chunk, features: Features, state: State) -> tuple[Array, Array, State]:
    """Features of the keys `[B c K M]` relative to the highest yet, zero at padding; values; the state relative too."""
    logs, valid = features(chunk.key), chunk.valid[:, :, None, None]
    highest = lax.stop_gradient(jnp.maximum(state.highest, jnp.where(valid, logs, _NO_KEY).max(1)))
    kept = jnp.exp(lax.stop_gradient(state.highest) - highest)
    rescaled = State(state.values * kept[..., None], state.weights * kept, highest)
    key_features = jnp.where(valid, jnp.exp(jnp.where(valid, logs - highest[:, None], 0)), 0)
    return key_features, chunk.value.astype(key_features.dtype), rescaled


def _joined(state: State, key_features: Array, value: Array) -> State:
    values = state.values + jnp.einsum("bskm,bskv->bkmv", key_features, value)
    return State(values, state.weights + key_features.sum(1), state.highest)


def _reading(query: Array, features: Features, state: State) -> Float[Array, "B c K G M"]:
    """The features of queries, relative to what each query reads most."""
    batch, length, num_heads, _ = query.shape
    heads = state.weights.shape[1]
    logs = features(query).reshape(batch, length, heads, num_heads // heads, -1) + state.highest[:, None, :, None]
    return jnp.exp(logs - lax.stop_gradient(logs.max(-1, keepdims=True)))


def _product(reading: Array, summed: Array) -> Array:
    """`[B c K G M] x [B K M ...] -> [B c K G ...]`."""
    return jnp.einsum("btkgm,bkm...->btkg...", reading, summed)


def _divide(sums: Array, total: Array, query: Array) -> Float[Array, "B c N V"]:
    read = total > _NOTHING
    x = jnp.where(read[..., None], sums / jnp.where(read, total, 1)[..., None], 0)
    return x.reshape(*query.shape[:3], -1).astype(query.dtype)


def _over_chunks(
    step: Callable[[State, Chunk], tuple[State, Array]], state: State, tokens: Chunk, size: int
) -> tuple[Array, State]:
    """`step` for every chunk of `size` tokens; features are made again in the backward pass, not kept."""
    length = tokens.query.shape[1]
    if length <= size:
        state, x = step(state, tokens)
        return x, state
    count = -(-length // size)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    state, x = lax.scan(jax.checkpoint(step), state, jax.tree.map(cut, tokens))
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], count * size, *x.shape[3:])[:, :length], state
