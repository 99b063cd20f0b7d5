"""T5X's helpers on caches and beams, under T5X's names and signatures.

Rows are batch-major: item i, beam k is row i * K + k. `offset` is the number of axes before the batch axis: 1 for
caches of scanned layers.
"""

from collections.abc import Callable
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from jaxtyping import Int

from flaxformer.decoding.logits import top_k
from flaxformer.types import Array

_INDEX = "cache_index"
_WITHOUT_ROWS = ("cached_bias", "position_embedder_index")


def cache_map(fn: Callable[[Array], Any], cache: Any, apply_to_index: bool = False) -> Any:
    """`fn` of every cache leaf that has rows; the other leaves, and the kind of dictionary, stay as they are.

    Args:
      fn: applied to leaves.
      cache: nested dictionary, frozen or plain.
      apply_to_index: whether `cache_index` counts as a leaf with rows.
    """
    without_rows = _WITHOUT_ROWS if apply_to_index else (*_WITHOUT_ROWS, _INDEX)

    def visit(path: tuple[Any, ...], leaf: Array) -> Any:
        return leaf if getattr(path[-1], "key", None) in without_rows else fn(leaf)

    frozen = isinstance(cache, flax.core.FrozenDict)
    mapped = jax.tree_util.tree_map_with_path(visit, flax.core.unfreeze(cache) if frozen else cache)
    return flax.core.freeze(mapped) if frozen else mapped


def add_beam_dim(x: Array, beam_size: int, offset: int = 0) -> Array:
    """`[B ...]` -> `[B K ...]`, each item repeated K times."""
    return jnp.repeat(jnp.expand_dims(x, offset + 1), beam_size, axis=offset + 1)


def flatten_beam_dim(x: Array, offset: int = 0) -> Array:
    """`[B K ...]` -> `[B*K ...]`."""
    return x.reshape(*x.shape[:offset], -1, *x.shape[offset + 2 :])


def unflatten_beam_dim(x: Array, batch_size: int, beam_size: int, offset: int = 0) -> Array:
    """`[B*K ...]` -> `[B K ...]`."""
    if x.shape[offset] != batch_size * beam_size:
        raise ValueError(
            f"axis {offset} of shape {tuple(x.shape)} has size {x.shape[offset]}; expected batch_size * beam_size = "
            f"{batch_size} * {beam_size}. Is the batch axis elsewhere (offset)?"
        )
    return x.reshape(*x.shape[:offset], batch_size, beam_size, *x.shape[offset + 1 :])


def flat_batch_beam_expand(x: Array, beam_size: int, offset: int = 0) -> Array:
    """`[B ...]` -> `[B*K ...]`, each item repeated K times in a row."""
    return jnp.repeat(x, beam_size, axis=offset)


def flat_rows(beam_indices: Int[Array, "B K"], old_beam_size: int) -> Int[Array, " R"]:
    """The flat row numbers of beams given per item."""
    first_row = jnp.arange(len(beam_indices), dtype=jnp.int32)[:, None] * old_beam_size
    return (beam_indices + first_row).reshape(-1)


def take_rows(x: Array, rows: Int[Array, " R"], offset: int = 0) -> Array:
    """`x` with the given rows: whole rows out of a flat array, the cheapest gather there is."""
    return jnp.take(x, rows, axis=offset, mode="clip")


def cache_gather_beams(
    nested: Any,
    beam_indices: Int[Array, "B K"],
    batch_size: int,
    old_beam_size: int,
    new_beam_size: int,
    one_hot: bool = True,
    offset: int = 0,
) -> Any:
    """The cache rows of the chosen beams: leaves `[B K_old ...]` -> `[B K_new ...]`.

    `one_hot` chose a matrix product instead of a gather in T5X and has no effect.
    """
    del one_hot
    rows = flat_rows(beam_indices, old_beam_size)

    def gather(x: Array) -> Array:
        flat = take_rows(flatten_beam_dim(x, offset), rows, offset)
        return unflatten_beam_dim(flat, batch_size, new_beam_size, offset)

    return cache_map(gather, nested)


def gather_beams(
    nested: Any,
    beam_indices: Int[Array, "B K"],
    batch_size: int,
    old_beam_size: int,
    new_beam_size: int,
    one_hot: bool = True,
) -> Any:
    """The chosen beams of every leaf `[B K_old ...]`, whatever its name."""
    del one_hot
    rows = flat_rows(beam_indices, old_beam_size)
    return jax.tree.map(
        lambda x: unflatten_beam_dim(take_rows(flatten_beam_dim(x), rows), batch_size, new_beam_size), nested
    )


def top_k_two_stage(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest entries of the last axis and their indices, largest first."""
    return top_k(x, k)


def gather_topk_beams(nested: Any, score_or_log_prob: Array, batch_size: int, new_beam_size: int) -> Any:
    """The best `new_beam_size` beams of every leaf by score, the best last."""
    _, index = jax.lax.top_k(score_or_log_prob, new_beam_size)
    return gather_beams(nested, index[:, ::-1], batch_size, score_or_log_prob.shape[1], new_beam_size)


def right_align_prompts(prompts: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Every row with its trailing zeros moved to the front."""
    trailing = jnp.argmax(jnp.flip(prompts != 0, axis=-1).astype(jnp.int32), axis=-1)
    return _roll(prompts, trailing)


def left_align_prompts(prompts: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Every row with its leading zeros moved to the end."""
    return _roll(prompts, -jnp.argmax((prompts != 0).astype(jnp.int32), axis=-1))


def _roll(x: Int[Array, "B L"], shift: Int[Array, " B"]) -> Int[Array, "B L"]:
    columns = (jnp.arange(x.shape[-1]) - shift[..., None]) % x.shape[-1]
    return jnp.take_along_axis(x, columns, axis=-1)


def remove_prefix(sequence: Int[Array, "B L"], prefix_length: Int[Array, " B"]) -> Int[Array, "B L"]:
    """Every row without its first `prefix_length` tokens: those become 0 and move to the end."""
    kept = jnp.where(jnp.arange(sequence.shape[-1]) >= prefix_length[:, None], sequence, 0)
    return _roll(kept, -prefix_length)
