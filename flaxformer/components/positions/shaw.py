"""Relative keys: every distance has a learned vector, and a query is compared with it as with a key.

    score(t, s) = q_t · (k_s + a_{s - t}) = q_t · k_s + q_t · a_{s - t}

The second term needs no vector per pair: `q_t · a_d` is computed once for every distance d, and then laid out.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Float, Int

from flaxformer.types import Array, Initializer


class ShawKeys(nn.Module):
    """Relative keys as the `positions` of an attention layer.

    Attributes:
      max_distance: distances beyond it share the vector of `max_distance`.
      bidirectional: keys after the query have vectors of their own; otherwise they share that of distance 0.
      num_heads: N for vectors of each head's own; None: all heads share them.
      scale: what the layer multiplies products of queries and keys by. 1.0 where the query kernel's initialisation
        holds the scale, as in T5; None for 1 / √H, where the layer has `rescale_logits` or its `attention_fn` scales.
      embedding_init: initializer of the table.

    >>> import jax
    >>> x, at = jnp.ones((1, 3, 2, 4)), jnp.arange(3)[None]
    >>> keys = ShawKeys(max_distance=8)
    >>> bias, variables = keys.init_with_output(jax.random.key(0), x, x, at, at, method="scores_bias")
    >>> bias.shape, variables["params"]["relative_keys"].shape
    ((1, 2, 3, 3), (17, 4))

    Source: Shaw et al. 2018, "Self-Attention with Relative Position Representations", section 3.2 (without relative
    values), https://arxiv.org/abs/1803.02155. Vectors of each head's own, for keys before the query only: Huang et al.
    2018, "Music Transformer", https://arxiv.org/abs/1809.04281.
    """

    max_distance: int
    bidirectional: bool = True
    num_heads: int | None = None
    scale: float | None = 1.0
    embedding_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def scores_bias(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        q_positions: Int[Array, "#B T"],
        k_positions: Int[Array, "#B S"],
    ) -> Float[Array, "B N T S"]:
        """What the relative keys add to the scores."""
        width = query.shape[-1]
        distances = self.max_distance * (2 if self.bidirectional else 1) + 1
        shape, axes = (distances, width), ("relpos_buckets", "kv")
        if self.num_heads is not None:
            shape, axes = (distances, self.num_heads, width), ("relpos_buckets", "heads", "kv")
        table = partitioning.param_with_axes("relative_keys", self.embedding_init, shape, jnp.float32, axes=axes)
        bias = relative_key_scores(query, table.astype(query.dtype), q_positions, k_positions, self.bidirectional)
        return bias * (width**-0.5 if self.scale is None else self.scale)


def relative_key_scores(
    query: Float[Array, "B T N H"],
    table: Float[Array, "distances H"] | Float[Array, "distances N H"],
    q_positions: Int[Array, "#B T"],
    k_positions: Int[Array, "#B S"],
    bidirectional: bool = True,
) -> Float[Array, "B N T S"]:
    """`query · table[key position - query position]`, in float32 or wider.

    Args:
      query: `[B T N H]`.
      table: a vector for each distance, from the furthest key before the query on.
      q_positions: positions of the queries.
      k_positions: positions of the keys.
      bidirectional: the table's middle is distance 0; otherwise its last row is.

    Raises:
      ValueError: when the table's heads or width are not the query's.
    """
    num_heads, width = query.shape[-2:]
    if table.shape[-1] != width or (table.ndim == 3 and table.shape[1] != num_heads):
        raise ValueError(
            f"relative keys have shape {table.shape} and the query {query.shape}; expected width {width}, and "
            f"{num_heads} heads or no axis for them. Was num_heads changed without its position scheme?"
        )
    products = "btnh,dnh->bntd" if table.ndim == 3 else "btnh,dh->bntd"
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum(products, query, table, preferred_element_type=wide)  # [B N T distances]
    distances = table.shape[0]
    zero = distances // 2 if bidirectional else distances - 1
    relative = k_positions[:, None, :] - q_positions[:, :, None]
    index = jnp.clip(relative + zero, 0, distances - 1)[:, None]  # [#B 1 T S]
    return jnp.take_along_axis(scores, index, axis=-1)
