"""Relative keys: every distance has a learned vector, and a query is compared with it as with a key.

    score(t, s) = q_t · (k_s + a_{s - t}) = q_t · k_s + q_t · a_{s - t}

The second term needs no vector per pair: `q_t · a_d` is computed once for every distance d, and then laid out.
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Float, Int

from flaxformer.components.attention.kernels.relative_keys import RelativeKeys
from flaxformer.parameters import parameter
from flaxformer.types import Array, Initializer


class ShawKeys(nn.Module):
    """Relative keys as the `positions` of an attention layer.

    The bias is lazy: an attention function that takes lazy biases never builds the square. It is scaled as the layer
    scales its products of queries and keys.

    Attributes:
      max_distance: distances beyond it share the vector of `max_distance`.
      bidirectional: keys after the query have vectors of their own; otherwise they share that of distance 0.
      num_heads: N for vectors of each head's own; None: all heads share them.
      embedding_init: initializer of the table.

    Source: Shaw et al. 2018, "Self-Attention with Relative Position Representations", section 3.2 (without relative
    values), https://arxiv.org/abs/1803.02155. Vectors of each head's own, for keys before the query only: Huang et al.
    2018, "Music Transformer", https://arxiv.org/abs/1809.04281.
    """

    max_distance: int
    bidirectional: bool = True
    num_heads: int | None = None
    embedding_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def scores_bias(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        q_positions: Int[Array, "#B T"],
        k_positions: Int[Array, "#B S"],
    ) -> RelativeKeys:
        """What the relative keys add to the scores of queries of this width, lazy."""
        width = query.shape[-1]
        distances = self.max_distance * (2 if self.bidirectional else 1) + 1
        shape, axes = (distances, width), ("relpos_buckets", "kv")
        if self.num_heads is not None:
            shape, axes = (distances, self.num_heads, width), ("relpos_buckets", "heads", "kv")
        table = parameter(self, "relative_keys", self.embedding_init, shape, axes=axes)
        return RelativeKeys(table, self.bidirectional, q_positions, k_positions)
