"""T5's relative position bias as a scheme of one layer, lazy."""

from __future__ import annotations

import flax.linen as nn
from flax.linen.linear import default_embed_init
from jaxtyping import Int

from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.parameters import parameter
from flaxformer.types import Array, Initializer


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of relative positions, given to an attention layer as `positions`.

    It is the bias of `RelativePositionBiases`, with parameters of the same name and shape, but lazy: an attention
    function that takes lazy biases never builds the square, and it holds in every layer that has one.

    Attributes:
      num_heads: N.
      num_buckets: columns of the table, shared by both directions if bidirectional.
      max_distance: distances from here on share a bucket.
      bidirectional: whether keys after the query have buckets of their own.
      embedding_init: initializer of the table.

    Source: Raffel et al. 2020, section 2.1, https://arxiv.org/abs/1910.10683
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    embedding_init: Initializer = default_embed_init

    @nn.compact
    def bias(self, q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"]) -> TableBias:
        """The lazy bias at these positions."""
        table = parameter(
            self,
            "rel_embedding",
            self.embedding_init,
            (self.num_heads, self.num_buckets),
            axes=("heads", "relpos_buckets"),
        )
        return TableBias(table, self.bidirectional, self.max_distance, q_positions, k_positions)
