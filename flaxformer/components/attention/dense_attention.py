"""Multi-head, grouped-query and multi-query attention: the layers with their fields.

What they do is in `dot_product_layer`: project, norm and rotate, remember, attend, project out. How they attend is an
object, `attention_fn`; the choices are in `variants`.

Addresses of google/flaxformer are kept here: the masks, the attention functions and `LocalAttentionLayer` are defined
in files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from flax.linen.linear import default_kernel_init
from flax.linen.spmd import RulesFallback

from flaxformer.components import dense
from flaxformer.components.attention.attention_functions import (
    _softmax_with_extra_logit,
    apply_dot_product_attention_weights_to_values,
    dot_product_attention,
    dot_product_attention_multiquery,
    dot_product_attention_weights,
)
from flaxformer.components.attention.caches import Cache, FullCache
from flaxformer.components.attention.dot_product_layer import DotProductAttention
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.attention.local_attention import LocalAttentionLayer
from flaxformer.components.attention.mask_arrays import (
    combine_biases,
    combine_masks,
    get_decoder_logit_mask,
    make_attention_mask,
    make_causal_mask,
    make_decoder_mask,
    shift_left,
    validate_dense_attention_call_parameter_shapes,
)
from flaxformer.components.attention.masks import Mask
from flaxformer.components.calling import call_part
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision

zeros = nn.initializers.zeros


class MultiHeadDotProductAttention(DotProductAttention):
    """Multi-head attention; grouped-query and multi-query attention by `num_kv_heads`.

    `out = concat_n(softmax(q_n · k_n + bias) · v_n) · W_out`

    Attributes:
      num_heads: query heads N.
      use_bias: biases on all projections.
      dtype: compute type; parameters are float32.
      qkv_features: total width of the projected heads; None means the width of `inputs_q`.
      head_dim: width of one head H; None means `qkv_features // num_heads`.
      out_features: output width; None means the width of `inputs_q`.
      broadcast_dropout: one dropout mask for all query positions.
      dropout_rate: share of attention weights dropped in training.
      precision: of the matrix products.
      kernel_init: initialises key, value and out, and the other kernels where their own is None.
      qkv_kernel_init: of the fused qkv kernel.
      kv_kernel_init: of the fused kv kernel.
      q_kernel_init: of the query kernel. Unless `rescale_logits`, its values are divided by √H.
      bias_init: of the projection biases.
      rescale_logits: divide the query by √H at run time.
      attention_fn: what turns heads into values, with the keywords of `dot_product_attention`: a function, an object or
        a module. One that has a method `weights` is asked for them when the collection 'attention' is mutable; one
        with `takes_lazy_bias = True` is given lazy biases as they are.
      use_extra_logit: let attention rest on nothing.
      float32_logits: logits and softmax in float32.
      output_projection: False returns `[B T N H]`.
      sow_intermediates: accepted and unused.
      split_head_kernel: store kernels by head, `[D N H]`.
      kernels_to_fuse: None, 'qkv' or 'kv'.
      use_rotary_embedding: rotate queries and keys by their positions.
      rotary_embedding_max_timescale: slowest rotation.
      sharding_over_head_dimension: hint the sharding of the heads.
      q_conv, k_conv, v_conv: modules applied to the projected heads, for example depthwise convolutions
        (Primer, So et al. 2021, arXiv:2109.08668).
      dense_general_factory: makes the projections.
      num_kv_heads: key/value heads K, a divisor of N; None means N.
      positions: a position scheme, for example `Rotary(fraction=0.5)`, or a module with any of its methods `rotate` and
        `bias`, and `scores_bias(query, key, q_positions, k_positions)` for biases that depend on the query.
      q_norm, k_norm: norms of the last axis of the projected heads, applied before they are rotated. They undo the
        scale of the query kernel's initialisation: set `rescale_logits`, or a scale in `attention_fn`.
      reach: a symbolic mask of this layer's own, for example `masks.Window(left=512)`, beside the caller's.
      cache: how earlier keys and values are kept while decoding: `FullCache(dtype=None)`, `RingCache(window)`,
        `QuantizedCache()`.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ainslie et al. 2023, arXiv:2305.13245.
    """

    num_heads: int
    use_bias: bool
    dtype: DType = jnp.float32
    qkv_features: int | None = None
    head_dim: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    qkv_kernel_init: Initializer | None = None
    kv_kernel_init: Initializer | None = None
    q_kernel_init: Initializer | None = None
    bias_init: Initializer = zeros
    rescale_logits: bool = False
    attention_fn: Callable[..., Array] = dot_product_attention
    use_extra_logit: bool = False
    float32_logits: bool = False
    output_projection: bool = True
    sow_intermediates: bool = False
    split_head_kernel: bool = False
    kernels_to_fuse: str | None = None
    use_rotary_embedding: bool = False
    rotary_embedding_max_timescale: float = 10000.0
    sharding_over_head_dimension: bool = True
    q_conv: nn.Module | None = None
    k_conv: nn.Module | None = None
    v_conv: nn.Module | None = None
    dense_general_factory: Callable[..., nn.Module] = dense.DenseGeneral
    num_kv_heads: int | None = None
    positions: PositionScheme | nn.Module | None = None
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    reach: Mask | None = None
    cache: Cache = FullCache()

    @nn.nowrap
    def _precomputed(self, precomputed_qkv: Any) -> tuple[Array, Array, Array]:
        raise ValueError(
            "MultiHeadDotProductAttention got precomputed_qkv; expected None. "
            "Use MultiQueryDotProductAttention, whose heads a fused layer may project."
        )


class MultiQueryDotProductAttention(DotProductAttention):
    """Attention whose query heads share one key and value head, stored without an axis for it.

    The attributes are those of `MultiHeadDotProductAttention`; `split_head_kernel` concerns `query` and `out` only.
    `use_aqt`, `weight_params`, `act_params` and `possibly_use_quantized_vars` are retired: see `flaxformer.retired`.

    Source: Shazeer 2019, arXiv:1911.02150.
    """

    num_heads: int
    use_bias: bool
    dtype: DType = jnp.float32
    qkv_features: int | None = None
    head_dim: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    kernel_init: Initializer = default_kernel_init
    q_kernel_init: Initializer | None = None
    bias_init: Initializer = zeros
    rescale_logits: bool = False
    attention_fn: Callable[..., Array] = dot_product_attention_multiquery
    use_extra_logit: bool = False
    float32_logits: bool = False
    use_rotary_embedding: bool = False
    rotary_embedding_max_timescale: float = 10000.0
    split_head_kernel: bool = False
    q_conv: nn.Module | None = None
    k_conv: nn.Module | None = None
    v_conv: nn.Module | None = None
    use_aqt: bool | None = False
    weight_params: Any = None
    act_params: Any = None
    possibly_use_quantized_vars: bool = False
    positions: PositionScheme | nn.Module | None = None
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    reach: Mask | None = None
    cache: Cache = FullCache()

    num_kv_heads = 1

    @nn.nowrap
    def _precomputed(self, precomputed_qkv: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        query, key, value = precomputed_qkv
        return query, key[..., None, :], value[..., None, :]

    @nn.nowrap
    def _project_key_value(self, inputs_kv: Array, head_dim: int) -> tuple[Array, Array]:
        options = {"reshape_kernel": True}
        names = ["embed", "kv"]
        key = self._dense("key", (head_dim,), self.kernel_init, names, **options)(inputs_kv)
        value = self._dense("value", (head_dim,), self.kernel_init, names, **options)(inputs_kv)
        return key[..., None, :], value[..., None, :]

    @nn.nowrap
    def _place(
        self, conv: Callable | None, norm: Callable | None, x: Array, positions: Array | None, step: Step
    ) -> Array:
        # The convolutions of keys and values were written for heads without an axis.
        if conv is not None and x.shape[-2] == 1 and conv is not self.q_conv:
            x, conv = call_part(conv, x[..., 0, :], step=step)[..., None, :], None
        return super()._place(conv, norm, x, positions, step)

    @nn.nowrap
    def _call_attention_fn(self, query: Array, key: Array, value: Array, **options) -> Array:
        return self.attention_fn(query, key[..., 0, :], value[..., 0, :], **options)

    @nn.nowrap
    def _cache_variable(self, name: str, shape: tuple[int, ...], dtype: DType) -> Any:
        axes = ("cache_batch",) if name == "cache_index" else ("cache_batch", "cache_kv", "cache_length")
        return partitioning.variable_with_axes("cache", name, jnp.zeros, shape, dtype, axes=axes)

    @nn.nowrap
    def _index_shape(self, key: Array) -> tuple[int, ...]:
        return key.shape[:1]

    @nn.nowrap
    def _to_stored(self, x: Array) -> Array:
        return super()._to_stored(x)[..., 0, :, :]

    @nn.nowrap
    def _from_stored(self, x: Array) -> Array:
        return super()._from_stored(x[..., None, :, :])


__all__ = [
    "DenseAttention",
    "LocalAttentionLayer",
    "MultiHeadDotProductAttention",
    "MultiQueryDotProductAttention",
    "RulesFallback",
    "_softmax_with_extra_logit",
    "apply_dot_product_attention_weights_to_values",
    "combine_biases",
    "combine_masks",
    "dot_product_attention",
    "dot_product_attention_multiquery",
    "dot_product_attention_weights",
    "get_decoder_logit_mask",
    "make_attention_mask",
    "make_causal_mask",
    "make_decoder_mask",
    "shift_left",
    "validate_dense_attention_call_parameter_shapes",
]
