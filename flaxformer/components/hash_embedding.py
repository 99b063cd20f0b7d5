"""Embeddings without a vocabulary: ids, or runs of ids, are hashed into several small tables.

Two ids seldom collide in all tables at once, so the concatenation of the rows tells them apart, at a fraction of the
parameters of one row per id. With characters as ids no vocabulary has to be chosen at all.

Source: Svenstrup et al. 2017, "Hash Embeddings for Efficient Word Representations"; Clark et al. 2021, "CANINE:
Pre-training an Efficient Tokenization-Free Encoder for Language Representation", section 3.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_embed_init
from jaxtyping import Float, Shaped

from flaxformer.components.embedder import Embedder, checked_ids
from flaxformer.components.token_embedding import Embed
from flaxformer.types import Array, DType, Initializer

_PRIMES_OF_UP_TO_8_TABLES = (31, 43, 59, 61, 73, 97, 103, 113)


def first_primes(count: int) -> list[int]:
    """The first `count` primes.

    >>> first_primes(5)
    [2, 3, 5, 7, 11]
    """
    candidates = itertools.count(2)
    primes: list[int] = []
    while len(primes) < count:
        candidate = next(candidates)
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
    return primes


def _features_per_table(features: int, num_tables: int) -> int:
    if features % num_tables:
        raise ValueError(
            f"features is {features}, which {num_tables} tables cannot share evenly; "
            "expected features to be a multiple of num_tables."
        )
    return features // num_tables


class HashEmbed(nn.Module, Embedder[Array]):
    """Concatenates one row of each of several tables, chosen by as many hash functions.

    Table `i` is read at `((id + 1) * prime_i) mod num_embeddings_per_table`, in the type of the ids, with overflow
    wrapping around.

    Attributes:
      features: width D of the result, a multiple of `num_tables`.
      num_embeddings_per_table: rows of each table.
      num_tables: how many tables (hash functions).
      cast_input_dtype: type to cast ids to first.
      dtype: type of the result.
      embedding_init: initializer of the tables.
      one_hot: as for `Embed`.
    """

    features: int
    num_embeddings_per_table: int
    num_tables: int = 8
    cast_input_dtype: DType | None = None
    dtype: DType = jnp.float32
    embedding_init: Initializer = default_embed_init
    one_hot: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Shaped[Array, "*ids"],
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Float[Array, "*ids D"]:
        """Embeds ids of any rank; the keywords are not used.

        Raises:
          ValueError: when the tables cannot share `features` evenly, or for ids that are not integers.
        """
        width = _features_per_table(self.features, self.num_tables)
        ids = checked_ids(input_ids, self.cast_input_dtype)
        if self.num_tables <= len(_PRIMES_OF_UP_TO_8_TABLES):
            primes = _PRIMES_OF_UP_TO_8_TABLES[: self.num_tables]
        else:
            primes = first_primes(self.num_tables)
        return jnp.concatenate(
            [
                Embed(
                    num_embeddings=self.num_embeddings_per_table,
                    features=width,
                    dtype=self.dtype,
                    embedding_init=self.embedding_init,
                    one_hot=self.one_hot,
                    name=f"hash_embedder_table_{i}",
                )((ids + 1) * prime % self.num_embeddings_per_table)
                for i, prime in enumerate(primes)
            ],
            axis=-1,
        )


class NgramHashEmbed(nn.Module, Embedder[Array]):
    """Adds the hash embeddings of the runs of ids (n-grams) that start at each position.

    The hash of a run grows with it: `h_1 = id_1 * p`, `h_o = (h_{o-1} + id_o) * p`, one prime `p` per table.

    Attributes:
      ngram_orders: lengths of the runs, for example `[1, 3, 4]`.
      padding_id: id that stands behind the end of a sequence, and of a segment.
      features: width D of the result, a multiple of `num_tables`.
      num_embeddings_per_table: rows of each table.
      num_tables: tables per order.
      cast_input_dtype: type to cast ids and segment ids to first.
      dtype: type of the result.
      embedding_init: initializer of the tables.
      one_hot: as for `Embed`.
    """

    ngram_orders: Sequence[int]
    padding_id: int
    features: int
    num_embeddings_per_table: int
    num_tables: int = 8
    cast_input_dtype: DType | None = None
    dtype: DType = jnp.float32
    embedding_init: Initializer = default_embed_init
    one_hot: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Shaped[Array, "*batch T"],
        *,
        segment_ids: Shaped[Array, "*batch T"] | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Float[Array, "*batch T D"]:
        """Embeds sequences of ids.

        Args:
          input_ids: the ids.
          segment_ids: runs do not reach across the end of a segment.
          decode: not used, nor is `enable_dropout`.

        Raises:
          ValueError: when the tables cannot share `features` evenly, or for ids that are not integers.
        """
        width = _features_per_table(self.features, self.num_tables)
        shifted = self._shifted(input_ids, segment_ids)
        per_order: dict[int, list[Array]] = {order: [] for order in self.ngram_orders}
        for table, prime in enumerate(first_primes(self.num_tables)):
            hashed = jnp.zeros_like(shifted[0])
            for order, ids in enumerate(shifted, start=1):
                hashed = (hashed + ids) * prime
                if order in per_order:
                    embed = Embed(
                        num_embeddings=self.num_embeddings_per_table,
                        features=width,
                        dtype=self.dtype,
                        embedding_init=self.embedding_init,
                        one_hot=self.one_hot,
                        name=f"{order}gram_hash_embed_table_{table}",
                    )
                    per_order[order].append(embed(hashed % self.num_embeddings_per_table))
        return functools.reduce(operator.add, (jnp.concatenate(tables, axis=-1) for tables in per_order.values()))

    def _shifted(self, input_ids: Array, segment_ids: Array | None) -> list[Array]:
        """The ids that stand 0, 1, 2, ... places ahead of each position."""
        shifted = [checked_ids(input_ids, self.cast_input_dtype)]
        last = None
        if segment_ids is not None:
            segment_ids = checked_ids(segment_ids, self.cast_input_dtype)
            last = segment_ids != self._shift(segment_ids)
        for _ in range(max(self.ngram_orders) - 1):
            ids = self._shift(shifted[-1])
            shifted.append(ids if last is None else jnp.where(last, self.padding_id, ids))
        return shifted

    def _shift(self, x: Array) -> Array:
        behind_the_end = jnp.full_like(x[..., :1], self.padding_id)
        return jnp.concatenate([x[..., 1:], behind_the_end], axis=-1)
