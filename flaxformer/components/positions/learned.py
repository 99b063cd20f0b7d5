"""Learned absolute positions."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_embed_init
from jaxtyping import Float, Shaped

from flaxformer.components.embedder import EmbedderWithDecode, checked_ids
from flaxformer.components.positions.counter import CountedPositions, next_position
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer


class PositionEmbed(CountedPositions, EmbedderWithDecode[Array]):
    """A learned vector for each position.

    Attributes:
      num_embeddings: rows of the table, the longest sequence it can place. Positions beyond it embed as NaN.
      features: width D of the table.
      dtype: accepted for old configurations; the result is float32 always.
      embedding_init: initializer of the table.
      offset: rows in front of that of position 0, so that the table has `offset + num_embeddings` of them. Published
        tables keep such rows; position -1, which padding has in some models, reads the last of them.
    """

    num_embeddings: int
    features: int
    dtype: DType = jnp.float32
    embedding_init: Initializer = default_embed_init
    offset: int = 0

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "*ids"],
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Float[Array, "*ids D"]:
        """Embeds positions of any rank.

        Args:
          inputs: the positions; negative ones count from the end, once.
          segment_ids: not used, nor is `enable_dropout`.
          decode: ignores `inputs` and takes the next position of `cache/position_embedder_index`.

        Raises:
          ValueError: for positions that are not integers.
        """
        table = parameter(
            self,
            "pos_embedding",
            self.embedding_init,
            (self.num_embeddings + self.offset, self.features),
            axes=("abspos_buckets", "embed"),
        )
        if decode:
            return jnp.take(table, next_position(self) + jnp.uint32(self.offset), axis=0)[:, None, :]  # [#B 1 D]
        return jnp.take(table, checked_ids(inputs) + self.offset, axis=0)
