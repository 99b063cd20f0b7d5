"""Attention within chunks: a query sees only the keys of the chunk that its own chunk is paired with."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import masks
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.calling import call_part
from flaxformer.step import Step
from flaxformer.types import Array

Chunk = tuple[int, int]


class LocalAttentionLayer(nn.Module, DenseAttention):
    """Cuts queries and keys into chunks, pairs them in order, and lets any attention layer attend within each pair.

    Cost falls from T·S to T times the width of a key chunk. With 6 queries, 6 keys, query chunks of 2 by 2 and key
    chunks of 4 by 2, each `x` is a key that is seen:

        xxxx..
        xxxx..
        ..xxxx
        ..xxxx
        ....xx
        ....xx

    Attributes:
      localized_attention: the layer that attends within a pair; all pairs share its parameters.
      q_chunk_width: queries per chunk.
      q_chunk_stride: from the start of one query chunk to the next. At most the width; where chunks overlap, the output
        has the overlapping positions once per chunk.
      kv_chunk_width: keys per chunk.
      kv_chunk_stride: from the start of one key chunk to the next, at most the width.
      always_attend_to_first_position: every chunk also sees key 0, as a summary of the sequence.
      first_position_attends_to_all: query 0 is a chunk of its own, which sees every key.
    """

    localized_attention: nn.Module
    q_chunk_width: int
    q_chunk_stride: int
    kv_chunk_width: int
    kv_chunk_stride: int
    always_attend_to_first_position: bool = False
    first_position_attends_to_all: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in ("q", "kv"):
            width, stride = getattr(self, f"{side}_chunk_width"), getattr(self, f"{side}_chunk_stride")
            if stride > width:
                raise ValueError(
                    f"{side}_chunk_stride is {stride} and {side}_chunk_width {width}; expected a stride of at most the "
                    "width. Positions between chunks would be lost."
                )

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_kv: Float[Array, "*B S E"],
        mask: Array | masks.Mask | None = None,
        bias: Array | None = None,
        *,
        decode: bool = False,
        enable_dropout: bool = True,
        precomputed_qkv: object = None,
        step: Step | None = None,
    ) -> Float[Array, "*B T F"]:
        """Attends chunk by chunk.

        Args:
          inputs_q: `[B... T D]`.
          inputs_kv: `[B... S D]`.
          mask: `[B... #N #T S]`, an entry above 0 means "may see"; or a symbolic mask.
          bias: `[#B... #N #T S]`.
          decode: not supported.
          enable_dropout: passed on.
          precomputed_qkv: ignored.
          step: where the tokens stand; a step with a cache is not supported.

        Returns:
          The chunks' outputs, one after the other.

        Raises:
          ValueError: when decoding, and when queries and keys do not make the same number of chunks.
        """
        if decode or (step is not None and (step.decode or step.prefill or step.use_cache)):
            raise ValueError(
                "LocalAttentionLayer was called with decode=True or with a Step that has a cache; expected neither, "
                "because its chunks need whole sequences. Use a windowed mask in a layer that has a cache."
            )
        query_length, key_length = inputs_q.shape[-2], inputs_kv.shape[-2]
        pairs = self._pairs(query_length, key_length)
        if isinstance(mask, masks.Mask):
            mask = mask.dense(query_length, key_length)
        outputs = []
        for queries, keys in pairs:
            x = call_part(
                self.localized_attention,
                inputs_q[..., slice(*queries), :],
                self._keys(inputs_kv, keys, axis=-2),
                self._scores(mask, queries, keys),
                self._scores(bias, queries, keys),
                enable_dropout=enable_dropout,
            )
            outputs.append(x)
        return jnp.concatenate(outputs, axis=inputs_q.ndim - 2)

    def _pairs(self, query_length: int, key_length: int) -> list[tuple[Chunk, Chunk]]:
        first = self.first_position_attends_to_all
        queries = [(0, 1)] * first + _chunks(int(first), query_length, self.q_chunk_width, self.q_chunk_stride)
        keys = [(0, key_length)] * first + _chunks(0, key_length, self.kv_chunk_width, self.kv_chunk_stride)
        if len(queries) != len(keys):
            raise ValueError(
                f"{query_length} queries make {len(queries)} chunks {queries} and {key_length} keys make {len(keys)} "
                f"chunks {keys}; expected as many of one as of the other. Choose widths and strides that pair up."
            )
        return list(zip(queries, keys, strict=True))

    def _keys(self, x: Array, keys: Chunk, axis: int) -> Array:
        """The keys of one chunk along `axis`, with key 0 in front where every chunk sees it."""
        chunk = jax.lax.slice_in_dim(x, *keys, axis=axis)
        if not self.always_attend_to_first_position:
            return chunk
        return jnp.concatenate([jax.lax.slice_in_dim(x, 0, 1, axis=axis), chunk], axis=axis)

    def _scores(self, scores: Array | None, queries: Chunk, keys: Chunk) -> Array | None:
        """The part of a mask or bias `[... #T S]` that belongs to one pair of chunks."""
        if scores is None:
            return None
        if scores.shape[-2] > 1:
            scores = scores[..., slice(*queries), :]
        return scores if scores.shape[-1] == 1 else self._keys(scores, keys, axis=-1)


def _chunks(start: int, length: int, width: int, stride: int) -> list[Chunk]:
    return [(first, min(first + width, length)) for first in range(start, length, stride)]
