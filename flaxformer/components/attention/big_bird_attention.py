"""Attention between blocks as published BigBirds compute it outside training.

Scores are computed for all pairs and then masked, so that time and memory are those of full attention.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import scoring
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.masks import Mask, combine
from flaxformer.components.attention.reach import Blocks, Global
from flaxformer.types import Array


class BigBirdAttention(MultiHeadDotProductAttention):
    """Self-attention to neighbouring blocks, and from and to the first and the last; short sequences see everything.

    Where training draws blocks at random, published models take the first block again: its keys then count
    `1 + random_blocks` times in the softmax of every query outside the first and the last block,

        weight(t, s) ∝ (1 + random_blocks) exp(q_t · k_s)    for s in the first block.

    The last block is that of the arrays of a call, whether it holds padding or not. `reach.big_bird` is the pattern of
    the paper, with blocks that are drawn.

    Attributes:
      num_heads, use_bias, ...: as in `MultiHeadDotProductAttention`.
      block_size: tokens per block.
      random_blocks: blocks that training draws for each; sequences of at most `5 + 2 random_blocks` blocks see
        everything.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", https://arxiv.org/abs/2007.14062.
    """

    block_size: int = 64
    random_blocks: int = 3

    @nn.nowrap
    def _attend(self, query: Array, key: Array, value: Array, *, mask, bias, enable_dropout: bool) -> Array:
        length = key.shape[-3]
        if query.shape[-3] != length:
            raise ValueError(
                f"BigBirdAttention got {query.shape[-3]} queries for {length} keys; expected as many: it is for "
                "encoders."
            )
        if length > (5 + 2 * self.random_blocks) * self.block_size:
            mask = combine(mask, self._near(length))
            bias = scoring.add(bias, self._again(length))
        return super()._attend(query, key, value, mask=mask, bias=bias, enable_dropout=enable_dropout)

    @nn.nowrap
    def _last(self, length: int) -> int:
        """Where the last block starts."""
        return (length - 1) // self.block_size * self.block_size

    @nn.nowrap
    def _near(self, length: int) -> Mask:
        last = self._last(length)
        ends = Global(((0, self.block_size), (last, last + self.block_size)))
        return Blocks(self.block_size, before=1, after=1) | ends

    @nn.nowrap
    def _again(self, length: int) -> Float[Array, "1 1 T S"]:
        """What makes the first block count several times."""
        position = jnp.arange(length)
        within = (position >= self.block_size) & (position < self._last(length))
        repeated = within[:, None] & (position < self.block_size)[None, :]
        return jnp.where(repeated, math.log(1 + self.random_blocks), 0.0)[None, None].astype(self.dtype)
