"""Attention within a window and to summaries of the whole sequence, made anew in every layer: LongT5's encoder.

Scores are computed for all pairs and then masked, so that time and memory are those of full attention.

Glossary:

* *block*: consecutive tokens of a row; an incomplete last one joins the one before it.
* *global*: the normalised sum of a block's states, a key and a value that every token sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jaxtyping import Bool, Float, Int

from flaxformer.components.attention.attention_functions import dot_product_attention, dot_product_attention_weights
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.attention.masks import And, Mask, Segments, Window, as_mask
from flaxformer.components.attention.projections import HeadProjections
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.relative_position_biases import RelativePositionBiases, relative_position_bucket
from flaxformer.parameters import parameter
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision


class TokenAndGlobalBiases(RelativePositionBiases):
    """Two tables of the same size: of distances between tokens, and of distances from a token's block to globals.

    The attributes are those of `RelativePositionBiases`.
    """

    def setup(self) -> None:
        super().setup()
        self.global_embedding = parameter(
            self,
            "global_embedding",
            self.embedding_init,
            (self.num_heads, self.num_buckets),
            axes=(self.head_axis_name, "relpos_buckets"),
        )

    def to_globals(self, distances: Int[Array, "B T G"]) -> Float[Array, "B N T G"]:
        """The bias for globals that many blocks behind a token's own."""
        buckets = relative_position_bucket(
            distances, bidirectional=True, num_buckets=self.num_buckets, max_distance=self.max_distance
        )
        return jnp.moveaxis(jnp.asarray(self.global_embedding, self.dtype)[:, buckets], 0, 1)


def block_ids(valid: Bool[Array, "B T"], size: int) -> Int[Array, "B T"]:
    """The block of every token, -1 for padding and in rows without a whole block.

    >>> block_ids(jnp.array([[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]], bool), 2)
    Array([[ 0,  0,  1,  1,  1, -1],
           [-1, -1, -1, -1, -1, -1]], dtype=int32)
    """
    places = jnp.arange(valid.shape[1])
    ends = valid & (places % size == size - 1)
    last = jnp.sum(ends, axis=1, keepdims=True, dtype=jnp.int32) - 1
    return jnp.where(valid, jnp.minimum(places // size, last), -1)


class TransientGlobalAttention(HeadProjections, DenseAttention):
    """Self-attention to `radius` tokens on either side, and to a global for each block.

        globals_g = norm(sum of x_s over block g)
        softmax(q_t · [k_s over |t - s| <= radius; k_g over all g]) [v_s; v_g]

    Tokens and globals share projections. A row holds one example.

    Attributes:
      num_heads: heads N.
      radius: tokens seen on either side.
      tokens_per_block: of the blocks.
      use_bias: biases on all projections.
      dtype: of the computation.
      head_dim: width of one head H; None means the input's width divided by `num_heads`.
      dropout_rate: share of attention weights dropped in training.
      broadcast_dropout: one dropout mask for all query positions.
      rescale_logits: divides queries by √H.
      precision: of the matrix products.
      kernel_init: of all kernels.
      bias_init: of all biases.
      norm_factory: makes the norm of the globals.

    Source: Guo et al. 2021, "LongT5", arXiv:2112.07916, section 3.1.2.
    """

    num_heads: int
    radius: int
    tokens_per_block: int = 16
    use_bias: bool = False
    dtype: DType = jnp.float32
    head_dim: int | None = None
    dropout_rate: float = 0.0
    broadcast_dropout: bool = True
    rescale_logits: bool = False
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros
    norm_factory: Callable[[], nn.Module] = T5LayerNorm

    qkv_features = out_features = q_kernel_init = None
    split_head_kernel = False

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs_q: Float[Array, "B T D"],
        inputs_kv: Float[Array, "B T D"],
        mask: Mask | Array | None = None,
        bias: Float[Array, "#B #N T T"] | None = None,
        *,
        bias_module: TokenAndGlobalBiases | None = None,
        enable_dropout: bool = True,
        step: Step | None = None,
    ) -> Float[Array, "B T D"]:
        """Attends from `inputs_q` to `inputs_kv`, the same array.

        Args:
          inputs_q: queries.
          inputs_kv: keys and values.
          mask: who may see whom, beside the window; a token that does not see itself is padding.
          bias: added to the scores between tokens.
          bias_module: gives the bias for globals; None: there is none.
          enable_dropout: False switches attention dropout off.
          step: where the tokens stand.

        Raises:
          ValueError: for shapes that differ, packed rows, or a call that decodes.
        """
        step, mask = step or Step(), as_mask(mask)
        packed = any(isinstance(part, Segments) for part in (mask.parts if isinstance(mask, And) else (mask,)))
        if inputs_q.shape != inputs_kv.shape or packed or step.use_cache or step.decode or step.prefill:
            raise ValueError(
                f"TransientGlobalAttention got inputs_kv of shape {inputs_kv.shape} for inputs_q of shape "
                f"{inputs_q.shape}, packed rows: {packed}, and a step that caches: "
                f"{step.use_cache or step.decode or step.prefill}; expected one shape, one example per row, outside "
                "decoding: it is a layer for encoders."
            )
        length = inputs_q.shape[1]
        near: Mask = Window(left=self.radius, right=self.radius)
        seen = (near if mask is None else mask & near).dense(length, length)  # [#B 1 T T]
        valid = jnp.broadcast_to(jnp.diagonal(seen[:, 0], axis1=-2, axis2=-1), inputs_q.shape[:2])
        blocks, count = block_ids(valid, self.tokens_per_block), length // self.tokens_per_block
        member = jax.nn.one_hot(blocks, count, dtype=jnp.float32)  # [B T G]; none at -1
        summaries = self.norm_factory()(jnp.einsum("btg,btd->bgd", member, inputs_q)).astype(inputs_q.dtype)
        whole = jnp.any(member > 0, axis=1)[:, None, None, :] & valid[:, None, :, None]  # [B 1 T G]
        seen = jnp.broadcast_to(seen, (len(inputs_q), *seen.shape[1:]))
        mask = as_mask(jnp.concatenate([seen, jnp.broadcast_to(whole, (*seen.shape[:3], count))], axis=-1))
        if bias is not None or bias_module is not None:
            bias = self._bias(bias, bias_module, jnp.arange(count) - blocks[..., None])
        return self._look(inputs_q, jnp.concatenate([inputs_q, summaries], axis=1), mask, bias, enable_dropout)

    @nn.nowrap
    def _bias(
        self, near: Array | None, module: TokenAndGlobalBiases | None, distances: Int[Array, "B T G"]
    ) -> Float[Array, "B N T T+G"]:
        batch, length, count = distances.shape
        zeros = jnp.zeros((batch, self.num_heads, length, 1), self.dtype)
        near = jnp.broadcast_to(zeros if near is None else near, (batch, self.num_heads, length, length))
        far = jnp.broadcast_to(zeros, (*zeros.shape[:3], count)) if module is None else module.to_globals(distances)
        return jnp.concatenate([near, far], axis=-1)

    @nn.nowrap
    def _look(
        self, inputs_q: Array, inputs_kv: Array, mask: Mask | None, bias: Array | None, enable_dropout: bool
    ) -> Float[Array, "B T D"]:
        features, names = (self.num_heads, self._head_dim(inputs_q.shape[-1])), ["embed", "heads", "kv"]
        query = self._project_query(inputs_q)
        key, value = (self._dense(part, features, self.kernel_init, names)(inputs_kv) for part in ("key", "value"))
        options: dict[str, Any] = {
            "bias": bias,
            "mask": mask,
            "dtype": self.dtype,
            "precision": self.precision,
            "rescale_logits": self.rescale_logits,
        }
        if self.is_mutable_collection("attention") and not self.is_initializing():
            weights = dot_product_attention_weights(query, key, enable_dropout=False, **options)
            self.sow("attention", "weights", weights)
        x = dot_product_attention(
            query,
            key,
            value,
            broadcast_dropout=self.broadcast_dropout,
            dropout_rng=self.make_rng("dropout") if enable_dropout and self.dropout_rate > 0.0 else None,
            dropout_rate=self.dropout_rate,
            enable_dropout=enable_dropout,
            **options,
        )
        return self._project_out(x, inputs_q.shape[-1])
