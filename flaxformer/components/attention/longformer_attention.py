"""Attention within a window and to global tokens, which have projections of their own: the layer of Longformer.

Scores are computed for all pairs and then masked, so that time and memory are those of full attention.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jaxtyping import Bool, Float

from flaxformer.components.attention.attention_functions import dot_product_attention, dot_product_attention_weights
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.attention.masks import Mask, Window, as_mask, combine
from flaxformer.components.attention.projections import HeadProjections
from flaxformer.components.attention.reach import Flagged, global_tokens
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision


class LongformerAttention(HeadProjections, DenseAttention):
    """Self-attention to `window` tokens on either side and to global tokens, which attend to everything.

        local:   softmax(q_t · k_s) v_s    over |t - s| <= window and global s
        global:  softmax(q'_t · k'_s) v'_s over all s, where t is global; q', k', v' by `query_global`, ...

    Which tokens are global is said by a `GlobalTokens` in the mask; models take them as `global_tokens`.

    Attributes:
      num_heads: heads N.
      window: tokens seen on either side.
      use_bias: biases on all projections.
      dtype: of the computation.
      head_dim: width of one head H; None means the input's width divided by `num_heads`.
      dropout_rate: share of attention weights dropped in training.
      broadcast_dropout: one dropout mask for all query positions.
      precision: of the matrix products.
      kernel_init: of all kernels.
      bias_init: of all biases.

    Source: Beltagy et al. 2020, "Longformer: The Long-Document Transformer", https://arxiv.org/abs/2004.05150, sections
    3.1 and 3.2 (without dilation).
    """

    num_heads: int
    window: int
    use_bias: bool = True
    dtype: DType = jnp.float32
    head_dim: int | None = None
    dropout_rate: float = 0.0
    broadcast_dropout: bool = True
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros

    qkv_features = out_features = q_kernel_init = None
    rescale_logits = True
    split_head_kernel = False

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs_q: Float[Array, "B T D"],
        inputs_kv: Float[Array, "B T D"],
        mask: Mask | Array | None = None,
        bias: Float[Array, "#B #N T T"] | None = None,
        *,
        enable_dropout: bool = True,
        step: Step | None = None,
    ) -> Float[Array, "B T D"]:
        """Attends from `inputs_q` to `inputs_kv`, which stand at the same positions.

        Args:
          inputs_q: queries.
          inputs_kv: keys and values, usually the same array.
          mask: who may see whom, beside the window; a `GlobalTokens` in it says which tokens are global.
          bias: added to the logits of both kinds.
          enable_dropout: False switches attention dropout off.
          step: where the tokens stand.

        Raises:
          ValueError: for shapes that differ, or a call that decodes.
        """
        step = step or Step()
        if inputs_q.shape != inputs_kv.shape or step.use_cache or step.decode or step.prefill:
            raise ValueError(
                f"LongformerAttention got inputs_kv of shape {inputs_kv.shape} for inputs_q of shape {inputs_q.shape}, "
                f"and a step that caches: {step.use_cache or step.decode or step.prefill}; expected one shape, outside "
                "decoding: it is a layer for encoders."
            )
        mask = as_mask(mask)
        flags = global_tokens(mask)
        near: Mask = Window(left=self.window, right=self.window).at(step.positions, step.positions)
        if flags is not None:
            near = near | Flagged(jnp.zeros_like(flags), flags)
        x, weights = self._look(inputs_q, inputs_kv, "", combine(mask, near), bias, enable_dropout)
        if flags is not None or self.is_initializing():
            far, far_weights = self._look(inputs_q, inputs_kv, "_global", mask, bias, enable_dropout)
            x, weights = _chosen(flags, x, weights, far, far_weights)
        if weights is not None:
            self.sow("attention", "weights", weights)
        return self._project_out(x, inputs_q.shape[-1])

    @nn.nowrap
    def _look(
        self,
        inputs_q: Array,
        inputs_kv: Array,
        kind: str,
        mask: Mask | None,
        bias: Array | None,
        enable_dropout: bool,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T T"] | None]:
        """Values by the projections of one kind, and the weights if they are asked for."""
        features = (self.num_heads, self._head_dim(inputs_q.shape[-1]))
        query, key, value = (
            self._dense(part + kind, features, self.kernel_init, ["embed", "heads", "kv"])(inputs)
            for part, inputs in (("query", inputs_q), ("key", inputs_kv), ("value", inputs_kv))
        )
        options: dict[str, Any] = {
            "bias": bias,
            "mask": mask,
            "dtype": self.dtype,
            "precision": self.precision,
            "rescale_logits": True,
        }
        dropping = enable_dropout and self.dropout_rate > 0.0
        x = dot_product_attention(
            query,
            key,
            value,
            broadcast_dropout=self.broadcast_dropout,
            dropout_rng=self.make_rng("dropout") if dropping else None,
            dropout_rate=self.dropout_rate,
            enable_dropout=enable_dropout,
            **options,
        )
        if self.is_mutable_collection("attention") and not self.is_initializing():
            return x, dot_product_attention_weights(query, key, enable_dropout=False, **options)
        return x, None


def _chosen(
    flags: Bool[Array, "#B T"] | None, near: Array, near_weights: Array | None, far: Array, far_weights: Array | None
) -> tuple[Array, Array | None]:
    """What global tokens see where `flags` says so, and what the others see elsewhere."""
    if flags is None:
        return near, near_weights
    x = jnp.where(flags[:, :, None, None], far, near)
    if near_weights is None or far_weights is None:
        return x, None
    return x, jnp.where(flags[:, None, :, None], far_weights, near_weights)
