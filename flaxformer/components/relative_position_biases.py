"""Relative position biases: a learned number per head and per bucket of distances, added to the attention scores.

Near distances have a bucket each, far ones share buckets of logarithmically growing width, and everything from
`max_distance` on shares the last one. With `bidirectional`, half of the buckets are for keys after the query; without,
all keys after the query fall into bucket 0.

Glossary:

* *relative position*: key position minus query position, negative for keys before the query.
* *distance*: its size, after what `bidirectional` says about the sign.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 2.1.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.linear import default_embed_init
from jaxtyping import Float, Int

from flaxformer.parameters import parameter
from flaxformer.types import Array


class RelativeAttentionAPI(metaclass=abc.ABCMeta):
    """What a module must offer to bias attention by the lengths of queries and keys."""

    @abc.abstractmethod
    def __call__(self, qlen: int, klen: int, bidirectional: bool, decode: bool) -> Array:
        """The bias `[1 N T S]` between `qlen` queries and `klen` keys at positions `0, 1, 2, ...`.

        Args:
          qlen: queries T.
          klen: keys S.
          bidirectional: whether keys may lie after queries.
          decode: whether the caller decodes token by token, with a cache.
        """


@functools.cache
def _buckets_of_distances(num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from 0 to `max_distance`, int32. All larger distances share the last one.

    Computed once on the host: the logarithm of a compiler may round differently at the edge of a bucket.
    """
    exact = num_buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"there are {num_buckets} buckets per direction for distances up to {max_distance}; expected at least 2 "
            f"and a max_distance above {exact}. Change num_buckets (shared by both directions if bidirectional) "
            "or max_distance."
        )
    distance = np.arange(max_distance + 1)
    ratio = np.maximum(distance, exact).astype(np.float32) / exact + np.finfo(np.float32).eps
    share = np.log(ratio) / np.log(max_distance / exact)
    logarithmic = np.minimum(exact + (share * (num_buckets - exact)).astype(np.int32), num_buckets - 1)
    return np.where(distance < exact, distance, logarithmic).astype(np.int32)


def relative_position_bucket(
    relative_position: Int[Array | np.ndarray, "*shape"], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[Array | np.ndarray, "*shape"]:
    """The bucket that each relative position falls into.

    Args:
      relative_position: key position minus query position. NumPy in gives NumPy out.
      bidirectional: half of the buckets are for keys after the query; otherwise those share bucket 0.
      num_buckets: in total.
      max_distance: distances from here on share a bucket.

    Returns:
      int32 in `[0, num_buckets)`.

    Raises:
      ValueError: for fewer than 2 buckets per direction, or more single-distance buckets than `max_distance` allows.

    >>> relative_position_bucket(np.array([-20, -9, -1, 0, 1, 20]), bidirectional=True, num_buckets=8, max_distance=12)
    array([3, 3, 1, 0, 5, 7], dtype=int32)
    """
    module: Any = np if isinstance(relative_position, np.ndarray) else jnp
    per_direction = num_buckets // 2 if bidirectional else num_buckets
    bucket_of = module.asarray(_buckets_of_distances(per_direction, max_distance))
    distance = abs(relative_position) if bidirectional else module.maximum(-relative_position, 0)
    bucket = bucket_of[module.minimum(distance, max_distance)]
    return module.where(relative_position > 0, bucket + per_direction, bucket) if bidirectional else bucket


def relative_bias(
    table: Float[Array, "N buckets"],
    q_positions: Int[Array, "#B T"],
    k_positions: Int[Array, "#B S"],
    *,
    bidirectional: bool,
    max_distance: int,
) -> Float[Array, "#B N T S"]:
    """The bias between queries and keys at any positions.

    Args:
      table: the bias of each head and bucket.
      q_positions: positions of the queries.
      k_positions: positions of the keys.
      bidirectional: whether keys may lie after queries.
      max_distance: distances from here on share a bucket.

    Raises:
      ValueError: when positions are not `[#B T]` and `[#B S]`.
    """
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        if positions.ndim != 2:
            raise ValueError(
                f"{name} has shape {positions.shape}; expected [batch or 1, length]. "
                "Add a leading axis of size 1 for positions that all rows share."
            )
    bucket = relative_position_bucket(
        k_positions[:, None, :] - q_positions[:, :, None],
        bidirectional=bidirectional,
        num_buckets=table.shape[-1],
        max_distance=max_distance,
    )  # [#B T S]
    return jnp.moveaxis(table[:, bucket], 0, 1)  # [#B N T S]


def consecutive_relative_bias(
    table: Float[Array, "N buckets"],
    query_length: int,
    key_length: int,
    *,
    bidirectional: bool,
    max_distance: int,
    numpy: ModuleType = np,
) -> Float[Array, "1 N T S"]:
    """The bias between queries and keys that both stand at positions `0, 1, 2, ...`.

    It depends on `key - query` only, so T + S numbers per head are looked up, and laid out as a matrix with constant
    diagonals: repeated rows of length T + S, cut again into rows of length T + S - 1, shift by one from row to row.

    Args:
      table: the bias of each head and bucket.
      query_length: queries T.
      key_length: keys S.
      bidirectional: whether keys may lie after queries.
      max_distance: distances from here on share a bucket.
      numpy: `jax.numpy` computes the T + S bucket ids in the compiled program instead of keeping them there.
    """
    # Forward / forward+backward, ms, AVX-512, 2 cores, least of 21, float32:
    #                                 128 x 128 x 6   128 x 128 x 8   512 x 512 x 6   512 x 512 x 8
    #   diagonals (this)              0.034 / 0.08    0.06 / 0.14     0.34 / 1.9      0.43 / 2.8
    #   diagonals read by gather      0.044 / 0.15    0.06 / 0.15     0.49 / 2.4      0.62 / 3.4
    #   gather, bucket ids constant   0.035 / 0.18    0.05 / 0.18     0.46 / 2.2      0.60 / 3.9
    #   gather, bucket ids computed   0.128 / 0.21    0.19 / 0.20     1.9  / 2.7      2.5  / 4.2
    #   one-hot [T S buckets] matmul  0.16  / 0.51    0.5  / 0.48     11   / 34       9.7  / 20
    columns = query_length + key_length
    column = numpy.arange(columns)
    bucket = relative_position_bucket(
        numpy.where(column < key_length, column, column - columns),
        bidirectional=bidirectional,
        num_buckets=table.shape[-1],
        max_distance=max_distance,
    )
    heads = table.shape[0]
    row = table[:, bucket]  # [N T+S], the bias of `key - query` at that index modulo T + S
    rows = jnp.broadcast_to(row[:, None], (heads, query_length, columns)).reshape(heads, query_length * columns)
    shifted = rows[:, : query_length * (columns - 1)].reshape(heads, query_length, columns - 1)
    return shifted[None, :, :, :key_length]


class RelativePositionBiases(nn.Module, RelativeAttentionAPI):
    """A learned bias for each head and bucket of distances.

    Attributes:
      num_buckets: columns of the table, shared by both directions if bidirectional.
      max_distance: distances from here on share a bucket.
      num_heads: N.
      dtype: type of the bias.
      embedding_init: initializer of the table.
      head_axis_name: logical name of the table's head axis.
      on_device_computation: compute bucket ids in the compiled program instead of keeping them there as constants.

    >>> import jax
    >>> biases = RelativePositionBiases(num_buckets=8, max_distance=12, num_heads=2, dtype="float32")
    >>> bias, variables = biases.init_with_output(jax.random.key(0), 5, 7)
    >>> bias.shape, variables["params"]["rel_embedding"].shape
    ((1, 2, 5, 7), (2, 8))
    """

    num_buckets: int
    max_distance: int
    num_heads: int
    dtype: Any
    embedding_init: Callable[..., Array] = default_embed_init
    head_axis_name: str = "heads"
    on_device_computation: bool = False

    def setup(self) -> None:
        self.rel_embedding = parameter(
            self,
            "rel_embedding",
            self.embedding_init,
            (self.num_heads, self.num_buckets),
            axes=(self.head_axis_name, "relpos_buckets"),
        )

    def __call__(
        self, qlen: int, klen: int, bidirectional: bool = True, decode: bool = False
    ) -> Float[Array, "1 N T S"]:
        """The bias between queries and keys at positions `0, 1, 2, ...`.

        Args:
          qlen: queries T.
          klen: keys S.
          bidirectional: whether keys may lie after queries.
          decode: computes the bias in the first call only and keeps it as `cache/cached_bias`.

        Raises:
          ValueError: for `decode` with `bidirectional` or inside `init`, and when a cached bias has other lengths.
        """
        if decode:
            self._check_decode(bidirectional)
            if self.has_variable("cache", "cached_bias"):
                return self._cached(qlen, klen)
        bias = consecutive_relative_bias(
            jnp.asarray(self.rel_embedding, self.dtype),
            qlen,
            klen,
            bidirectional=bidirectional,
            max_distance=self.max_distance,
            numpy=jnp if self.on_device_computation else np,
        )
        if decode:
            self.put_variable("cache", "cached_bias", bias)
        return bias

    def bias(
        self, q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"], bidirectional: bool = True
    ) -> Float[Array, "#B N T S"]:
        """The bias between queries and keys at any positions; nothing is cached.

        Args:
          q_positions: positions of the queries.
          k_positions: positions of the keys.
          bidirectional: whether keys may lie after queries.
        """
        return relative_bias(
            jnp.asarray(self.rel_embedding, self.dtype),
            q_positions,
            k_positions,
            bidirectional=bidirectional,
            max_distance=self.max_distance,
        )

    @staticmethod
    def _relative_position_bucket(
        relative_position: Array | np.ndarray,
        bidirectional: bool = True,
        num_buckets: int = 32,
        max_distance: int = 128,
        computation_module: ModuleType = np,
    ) -> Array | np.ndarray:
        """`relative_position_bucket` under the name google/flaxformer gave it."""
        return relative_position_bucket(
            computation_module.asarray(relative_position),
            bidirectional=bidirectional,
            num_buckets=num_buckets,
            max_distance=max_distance,
        )

    def _check_decode(self, bidirectional: bool) -> None:
        if bidirectional:
            raise ValueError(
                "decode=True came with bidirectional=True; expected bidirectional=False, as a token that is being "
                "decoded has no keys after it. Pass bidirectional=False."
            )
        if self.is_initializing():
            raise ValueError(
                "decode=True came inside init, where the parameters do not exist yet; expected an apply. "
                "Initialise with decode=False first."
            )

    def _cached(self, qlen: int, klen: int) -> Array:
        cached, expected = self.get_variable("cache", "cached_bias"), (1, self.num_heads, qlen, klen)
        if cached.shape != expected:
            raise ValueError(
                f"the cached bias has shape {cached.shape}; expected {expected} for this call. "
                "Pass the max_decode_length that the cache was created with, or start from an empty cache."
            )
        return cached
