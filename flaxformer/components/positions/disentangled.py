"""Disentangled positions: content looks for distances, and distances look for content.

    score(t, s) = q_t · k_s  +  q_t · K[d]  +  k_s · Q[d],    d = bucket(t - s)

`K` and `Q` are projections of one table of vectors for distances, near ones with a vector each, far ones sharing
buckets of logarithmically growing width. The second term is called content-to-position, the third position-to-content.

Source: He et al. 2020, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", section 3.1,
https://arxiv.org/abs/2006.03654; buckets as in DeBERTa v2 and v3 (He et al. 2021, https://arxiv.org/abs/2111.09543).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer


class DistanceTable(nn.Module):
    """The vectors of distances, `[2 buckets D]`; one table may serve all layers of a stack.

    Attributes:
      buckets: of each direction.
      features: width D.
      norm: applied to the table, for example a layer norm.
      dtype: type of the result.
      embedding_init: initializer of the table.
    """

    buckets: int
    features: int
    norm: Callable[[Array], Array] | None = None
    dtype: DType = jnp.float32
    embedding_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self) -> Float[Array, "distances D"]:
        """The table."""
        table = parameter(
            self,
            "rel_embeddings",
            self.embedding_init,
            (2 * self.buckets, self.features),
            axes=("relpos_buckets", "embed"),
        )
        return jnp.asarray(table if self.norm is None else self.norm(table), self.dtype)


def distance_index(
    distance: Int[Array | np.ndarray, "*shape"], buckets: int, max_distance: int | None
) -> Int[Array | np.ndarray, "*shape"]:
    """The row of the table for each `query position - key position`, int32 in `[0, 2 buckets)`.

    Args:
      distance: NumPy in gives NumPy out.
      buckets: of each direction; half of them hold one distance each.
      max_distance: distances from here on share the last bucket. None: every bucket holds one distance.

    Raises:
      ValueError: for fewer than 2 buckets, or a `max_distance` that leaves no room for buckets of growing width.

    >>> distance_index(np.array([-20, -3, 0, 3, 4, 6, 20]), buckets=6, max_distance=16)
    array([ 0,  3,  6,  9, 10, 10, 11], dtype=int32)
    """
    module = np if isinstance(distance, np.ndarray) else jnp
    far = np.int32(max(max_distance or 0, 2 * buckets))
    bucket = module.asarray(_buckets_of_distances(buckets, max_distance))[module.minimum(abs(distance), far)]
    return module.clip(module.where(distance < 0, -bucket, bucket) + buckets, 0, 2 * buckets - 1)


@functools.cache
def _buckets_of_distances(buckets: int, max_distance: int | None) -> np.ndarray:
    """The bucket of each distance from 0 on, int32; the last entry is for all that follow.

    Computed once on the host, in float32 like the published models: a compiler's logarithm may round differently at the
    edge of a bucket.
    """
    if max_distance is None:
        return np.arange(2 * buckets + 1, dtype=np.int32)
    exact = buckets // 2
    if exact < 1 or max_distance - 1 <= exact:
        raise ValueError(
            f"there are {buckets} buckets per direction for distances up to {max_distance}; expected at least 2, and a "
            f"max_distance above {exact + 1}. Change buckets or max_distance."
        )
    distance = np.arange(max(max_distance, 2 * buckets) + 1)
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    share = ratio / np.log(np.float32((max_distance - 1) / exact))
    growing = np.ceil(share * np.float32(exact - 1)) + exact
    return np.where(distance <= exact, distance, growing).astype(np.int32)


def disentangled_scores(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    position_query: Float[Array, "distances N H"] | None,
    position_key: Float[Array, "distances N H"] | None,
    q_positions: Int[Array, "#B T"],
    k_positions: Int[Array, "#B S"],
    max_distance: int | None,
) -> Float[Array, "B N T S"]:
    """The terms of the scores that know distances, in float32 or wider.

    Args:
      query: queries.
      key: keys.
      position_query: projected distances that look for content; None leaves the term out.
      position_key: projected distances that content looks for, likewise.
      q_positions: positions of the queries.
      k_positions: positions of the keys.
      max_distance: see `distance_index`.

    Raises:
      ValueError: without either term.
    """
    terms = [x for x in (position_query, position_key) if x is not None]
    if not terms:
        raise ValueError("neither position_query nor position_key was given; expected at least one of the two terms.")
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    index = distance_index(distance, terms[0].shape[0] // 2, max_distance)[:, None]  # [#B 1 T S]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.zeros((), wide)
    if position_key is not None:
        by_distance = jnp.einsum("btnh,dnh->bntd", query, position_key, preferred_element_type=wide)
        scores += jnp.take_along_axis(by_distance, index, axis=-1)
    if position_query is not None:
        by_distance = jnp.einsum("bsnh,dnh->bnds", key, position_query, preferred_element_type=wide)
        scores += jnp.take_along_axis(by_distance, index, axis=-2)
    return scores
