"""Attention whose scores know distances by content: the layer of DeBERTa."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.positions.disentangled import disentangled_scores
from flaxformer.types import Array


class DisentangledAttention(MultiHeadDotProductAttention):
    """Multi-head attention with content-to-position and position-to-content terms.

    `score(t, s) = (q_t · k_s + q_t · K[d] + k_s · Q[d]) / √(terms · H)`, with the bucket d of the distance, and 3 terms
    or fewer where one is left out.

    The other attributes are those of `MultiHeadDotProductAttention`. What the projected distances look like is in
    `flaxformer.components.positions.disentangled`.

    Attributes:
      distances: makes the table of distances, `[2 buckets D]`, usually one `DistanceTable` that all layers share.
      max_distance: distances from here on share the last bucket; None: every bucket holds one distance.
      share_projections: the projections of content also project distances (`share_att_key` of published
        configurations); otherwise they have their own, `position_query` and `position_key`.
      content_to_position: whether content looks for distances.
      position_to_content: whether distances look for content.

    Source: He et al. 2020, "DeBERTa", https://arxiv.org/abs/2006.03654, section 3.1.
    """

    distances: nn.Module | None = None
    max_distance: int | None = 512
    share_projections: bool = True
    content_to_position: bool = True
    position_to_content: bool = True

    @nn.nowrap
    def scores_bias(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S N H"],
        q_positions: Int[Array, "#B T"],
        k_positions: Int[Array, "#B S"],
    ) -> Float[Array, "B N T S"]:
        """The terms of the scores that know distances. The layer asks itself, as its own position scheme."""
        table = self._table()
        position_key = self._project_distances("key", table) if self.content_to_position else None
        position_query = self._project_distances("query", table) if self.position_to_content else None
        if position_query is not None:
            position_query = position_query * self._scale(query.shape[-1])
        return disentangled_scores(
            query, key, position_query, position_key, q_positions, k_positions, self.max_distance
        )

    @nn.nowrap
    def _position_scheme(self) -> DisentangledAttention:
        return self

    @nn.nowrap
    def _table(self) -> Float[Array, "distances D"]:
        changed = {
            name: value
            for name, value in (
                ("positions", self.positions),
                ("num_kv_heads", self.num_kv_heads),
                ("kernels_to_fuse", self.kernels_to_fuse),
                ("rescale_logits", self.rescale_logits or None),
                ("use_rotary_embedding", self.use_rotary_embedding or None),
            )
            if value is not None
        }
        if changed or self.distances is None:
            raise ValueError(
                f"DisentangledAttention got distances={self.distances} and {changed}; expected a table of distances, "
                "and none of those options: it has its own positions and scale, and projects each head by itself."
            )
        return jnp.asarray(self.distances(), self.dtype)

    @nn.nowrap
    def _scale(self, width: int) -> float:
        return (width * (1 + self.content_to_position + self.position_to_content)) ** -0.5

    @nn.nowrap
    def _project_query(self, inputs_q: Array) -> Float[Array, "*B T N H"]:
        width = self._head_dim(inputs_q.shape[-1])
        return self._query_projection(width, name="query")(inputs_q) * self._scale(width)

    @nn.nowrap
    def _query_projection(self, width: int, name: str, **options) -> nn.Module:
        init = self.q_kernel_init or self.kernel_init
        return self._dense(name, (self.num_heads, width), init, ["embed", "heads", "kv"], **options)

    @nn.nowrap
    def _key_projection(self, width: int, name: str, **options) -> nn.Module:
        return self._dense(name, (self.num_heads, width), self.kernel_init, ["embed", "heads", "kv"], **options)

    @nn.nowrap
    def _project_distances(self, which: str, table: Array) -> Float[Array, "distances N H"]:
        """The table as queries or keys."""
        width = self._head_dim(table.shape[-1])
        projection = self._query_projection if which == "query" else self._key_projection
        if not self.share_projections:
            return projection(width, f"position_{which}")(table)
        shared = projection(width, which, parent=None)  # a second call of a projection that this layer has made
        return cast(Array, shared.apply({"params": self.variables["params"][which]}, table))
