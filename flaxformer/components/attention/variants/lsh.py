"""Attention by locality-sensitive hashing: a query sees the keys that hash to its bucket.

Glossary:

* *bucket*: the one of many random directions, or of their opposites, that a vector is nearest to. Vectors at a small
  angle, which have large products, often share one.
* *round*: one draw of directions. A query sees the keys that share its bucket in any round.
* *row*: here, one round of one head of one row of the batch.

Many queries are sorted by bucket, row by row. Buckets are then segments, the blockwise kernel skips the blocks in which
no bucket meets itself, and neither scores nor their mask exist as a square. Rounds are joined by their log-sum-exps;
what an earlier round shows is hidden in later ones, so that a pair counts once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flaxformer.components.attention import backends, masks
from flaxformer.components.attention.blocks import Start, cut
from flaxformer.components.attention.kernels.biases import Bias, Positional, SumBias, as_bias
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from flaxformer.types import Array, DType, Precision, PRNGKey

SORT_FROM = 128  # queries; fewer, such as the one of a decoding step, cost less than sorting the keys


@dataclasses.dataclass(frozen=True)
class Lsh:
    """`softmax(q · k)` over the keys that share the query's bucket in any round.

    Memory is linear in the length. Time is that of the kernel's blocks in which a bucket meets itself: towards
    `rounds / buckets` of all pairs where buckets are alike in size and longer than a block. Masks that know positions,
    flags or segments per token, and biases by position alike for all heads, are sorted along; with any others the
    square of pairs is made. Buckets and rounds are the same while decoding, where each step hashes what is cached.

    Hashes of queries and of keys agree where the two are alike: see `SharedQueryKeyAttention`.

    Attributes:
      buckets: per round: 1, or an even number.
      rounds: draws of directions. More of them miss fewer large products.
      seed: of the directions.

    >>> query = jnp.ones((1, 4, 2, 8))
    >>> Lsh(buckets=4)(query, query, query).shape
    (1, 4, 2, 8)

    Source: Kitaev et al. 2020, "Reformer", section 2, https://arxiv.org/abs/2001.04451, with the hash of Andoni et al.
    2015, https://arxiv.org/abs/1509.02897. There sorted queries are cut into chunks, and see within theirs and the one
    before; here they see all of their bucket.
    """

    buckets: int = 32
    rounds: int = 4
    seed: int = 0

    takes_lazy_bias: ClassVar[bool] = True

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S ..."],
        value: Float[Array, "B S ..."],
        bias: Array | Bias | None = None,
        *,
        mask: masks.Mask | Array | None = None,
        broadcast_dropout: bool = True,
        rescale_logits: bool = False,
        dropout_rng: PRNGKey | None = None,
        dropout_rate: float = 0.0,
        enable_dropout: bool = True,
        dtype: DType = jnp.float32,
        precision: Precision = None,
        use_extra_logit: bool = False,
        float32_logits: bool = False,
    ) -> Float[Array, "B T N V"]:
        """Attends; the arguments are those of `Attend`. A query that may see nothing attends to nothing.

        Raises:
          ValueError: for numbers of buckets and rounds that make no sense.
        """
        query, key, value = with_head_axis(query, key, value)
        groups = query.shape[2] // key.shape[2]
        dropping = enable_dropout and dropout_rate > 0.0
        options = {
            "scale": query.shape[-1] ** -0.5 if rescale_logits else 1.0,
            "dropout_rate": dropout_rate if dropping else 0.0,
            "dropout_rng": dropout_rng if dropping else None,
            "broadcast_dropout": broadcast_dropout,
            "precision": precision,
        }
        mask, bias = masks.as_mask(mask), as_bias(bias)
        hashes = self.hash(query), jnp.repeat(self.hash(key), groups, axis=2)
        if query.shape[1] >= SORT_FROM:
            rows = Rows.of(*hashes)
            sorted_mask, sorted_bias = rows.sort_pairs(mask), rows.sort_pairs(bias)
            if (sorted_mask is None) == (mask is None) and (sorted_bias is None) == (bias is None):
                key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
                options |= {"mask": masks.combine(sorted_mask, rows.together()), "bias": sorted_bias}
                return rows.attend(query, key, value, use_extra_logit, **options)
        together = (hashes[0][..., :, None] == hashes[1][..., None, :]).any(0)  # [B N T S]
        sinks = jnp.zeros(query.shape[2]) if use_extra_logit else None
        options |= {"mask": masks.combine(together, mask), "bias": bias, "sinks": sinks}
        return cast(Array, backends.attend(query, key, value, **options))

    def weights(self, query: Array, key: Array, bias: Array | Bias | None = None, **options: Any) -> Array:
        """The weights `[B N T S]`."""
        return weights_of(self, query, key, bias, **options)

    def hash(self, x: Float[Array, "B L N H"]) -> Int[Array, "rounds B N L"]:
        """The buckets of queries or keys."""
        if self.rounds < 1 or self.buckets < 1 or (self.buckets > 1 and self.buckets % 2):
            raise ValueError(
                f"Lsh has rounds={self.rounds} and buckets={self.buckets}; expected at least one round, and one bucket "
                "or an even number, since a direction and its opposite are two."
            )
        batch, length, heads, width = x.shape
        if self.buckets == 1:
            return jnp.zeros((self.rounds, batch, heads, length), jnp.int32)
        directions = _directions(self.rounds, width, self.buckets // 2, self.seed)
        x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        products = jnp.einsum("blnh,rhd->rbnld", x, directions)
        return jnp.argmax(jnp.concatenate([products, -products], axis=-1), axis=-1).astype(jnp.int32)


@functools.cache
def _directions(rounds: int, width: int, count: int, seed: int) -> Float[np.ndarray, "rounds H count"]:
    return np.random.default_rng(seed).normal(size=(rounds, width, count)).astype(np.float32)


class Rows(NamedTuple):
    """Queries and keys of all rounds, sorted by bucket.

    Attributes:
      query_ids: buckets, `[rounds B N T]`.
      key_ids: `[rounds B N S]`.
      query_order: `[rows T]`, rows = rounds · B · N: where the sorted queries come from.
      key_order: `[rows S]`.
    """

    query_ids: Int[Array, "rounds B N T"]
    key_ids: Int[Array, "rounds B N S"]
    query_order: Int[Array, "rows T"]
    key_order: Int[Array, "rows S"]

    @classmethod
    def of(cls, query_ids: Int[Array, "rounds B N T"], key_ids: Int[Array, "rounds B N S"]) -> Rows:
        """Sorts; within a bucket tokens keep their order."""
        orders = (jnp.argsort(x, axis=-1, stable=True).reshape(-1, x.shape[-1]) for x in (query_ids, key_ids))
        return cls(query_ids, key_ids, *orders)

    def attend(
        self, query: Array, key: Array, value: Array, extra_logit: bool, **options: Any
    ) -> Float[Array, "B T N V"]:
        """Attends in each row, puts the queries back in order, and joins the rounds."""
        orders = self.query_order, self.key_order, self.key_order
        heads = (
            self._sort(x.swapaxes(1, 2)[None], order) for x, order in zip((query, key, value), orders, strict=True)
        )
        x, total = backends.attend(
            *(head[:, :, None] for head in heads), implementation="blockwise", return_residuals=True, **options
        )  # [rows T 1 V], [rows 1 T]
        back = jnp.argsort(self.query_order, axis=-1)
        x = jnp.take_along_axis(x[:, :, 0], back[..., None], axis=1).reshape(*self.query_ids.shape, -1)
        total = jnp.take_along_axis(total[:, 0], back, axis=1).reshape(self.query_ids.shape)
        highest = jax.lax.stop_gradient(total.max(0))
        highest = jnp.where(jnp.isneginf(highest), 0, highest)  # nothing is seen in any round
        highest = jnp.maximum(highest, 0) if extra_logit else highest
        shares = jnp.exp(total - highest)  # [rounds B N T]
        whole = shares.sum(0) + (jnp.exp(-highest) if extra_logit else 0)
        shares = shares / jnp.where(whole == 0, 1, whole)
        joined = (shares[..., None] * x.astype(shares.dtype)).sum(0)  # [B N T V]
        return joined.swapaxes(1, 2).astype(query.dtype)

    def together(self) -> masks.Mask:
        """In each row: the same bucket in its round, and in none before it."""
        rounds = self.query_ids.shape[0]
        parts: list[masks.Mask] = [masks.Segments(*(self._sort(x, o) for x, o in self._ids()))]
        later = np.arange(rounds)[:, None, None, None]
        for number in range(rounds - 1):
            ids = (
                self._sort(jnp.where(later > number, x[number], none), order)
                for (x, order), none in zip(self._ids(), (-1, -2), strict=True)
            )
            parts.append(Apart(*ids))
        return masks.And(tuple(parts))

    def sort_pairs(self, pairs: Any) -> Any:
        """A mask or bias for the sorted tokens, None where it cannot be sorted or there is none."""
        if isinstance(pairs, masks.And | masks.Or | SumBias):
            parts = tuple(map(self.sort_pairs, pairs.parts))
            return None if any(part is None for part in parts) else type(pairs)(parts)
        if isinstance(pairs, masks.KeyLengths):
            return self.sort_pairs(masks.Padding(None, pairs.block(0, 1, 0, self.key_ids.shape[-1])[:, 0, 0]))
        if isinstance(pairs, Positional) and not pairs.needs_query and pairs.shape[1] == 1:
            fields = ("query_positions",), ("key_positions",)
        elif isinstance(pairs, masks.Mask) and pairs.query_fields and pairs.key_fields:
            fields = pairs.query_fields, pairs.key_fields
        else:
            return None
        found = {}
        for names, (ids, order) in zip(fields, self._ids(), strict=True):
            for name in names:
                given = getattr(pairs, name)
                if given is None and name.endswith("positions"):
                    given = jnp.arange(ids.shape[-1], dtype=jnp.int32)[None]
                found[name] = None if given is None else self._sort(jnp.asarray(given)[:, None], order)
        return dataclasses.replace(cast(Any, pairs), **found)

    def _ids(self) -> list[tuple[Array, Array]]:
        return [(self.query_ids, self.query_order), (self.key_ids, self.key_order)]

    def _sort(self, x: Array, order: Int[Array, "rows L"]) -> Array:
        """Tokens `[#B 1 L]` or `[rounds B N L]` as sorted rows `[rows L]`; heads `[1 B N L H]` as `[rows L H]`."""
        shape = *self.query_ids.shape[:3], order.shape[1]
        rows = jnp.broadcast_to(x, shape + x.shape[4:]).reshape(*order.shape, *x.shape[4:])
        return jnp.take_along_axis(rows, order.reshape(order.shape + (1,) * (rows.ndim - 2)), axis=1)


@flax.struct.dataclass
class Apart(masks.Mask):
    """A query sees the keys that have another number than it has.

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
        return query != cut(self.key_ids, key_start, key_size)[:, None, None, :]
