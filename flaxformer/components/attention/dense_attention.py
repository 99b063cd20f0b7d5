"""Multi-head, grouped-query and multi-query attention: one implementation, five rooms.

    query, key, value = project(inputs)               projections.py   [B T N H], [B S K H]
    query, key = positions.rotate(query, key)         flaxformer.components.positions
    key, value, place = append(key, value, step)      cache.py, t5x_cache.py (identity when training)
    x = attention_fn(query, key, value, mask, bias)   attention_functions.py, kernels/
    return project_out(x)                             [B T D]

Addresses of google/flaxformer are kept here: the masks, the attention functions and `LocalAttentionLayer` are defined
in files of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen import partitioning
from flax.linen.linear import default_kernel_init
from flax.linen.spmd import RulesFallback
from jaxtyping import Float

from flaxformer import retired
from flaxformer.components import dense
from flaxformer.components.attention import cache, t5x_cache
from flaxformer.components.attention.attention_functions import (
    _softmax_with_extra_logit,
    apply_dot_product_attention_weights_to_values,
    dot_product_attention,
    dot_product_attention_multiquery,
    dot_product_attention_weights,
)
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
from flaxformer.components.attention.masks import MASKED_LOGIT, ArrayMask, Mask, Padding, as_mask
from flaxformer.components.attention.projections import HeadProjections, constrain_heads
from flaxformer.components.calling import accepts, call_part
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.step import Step
from flaxformer.types import Array, DType, Initializer, Precision

zeros = nn.initializers.zeros


class _DotProductAttention(HeadProjections, t5x_cache.CountedCache, DenseAttention):
    """The implementation behind the public classes below, which own the fields."""

    sharding_over_head_dimension = True
    positions = None

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_kv: Float[Array, "*B S Dkv"],
        mask: Mask | Array | None = None,
        bias: Array | None = None,
        *,
        precomputed_qkv: tuple[Array, Array, Array] | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
        step: Step | None = None,
    ) -> Float[Array, "*B T Dout"]:
        """Attends from `inputs_q` to `inputs_kv`.

        Args:
          inputs_q: `[B T D]`; more batch axes are fine without a cache.
          inputs_kv: `[B S Dkv]`. Pass the same array object as `inputs_q` for self-attention.
          mask: who may see whom: symbolic, or an array `[B, N or 1, T or 1, S]` with entries above 0 where visible.
          bias: added to the logits, `[B or 1, N or 1, T, S]`.
          precomputed_qkv: heads projected elsewhere; then nothing is projected here, not even the output
            (multi-query only).
          decode: T5X's one-token step on the cache this module counts itself.
          enable_dropout: False switches attention dropout off.
          prefill: T5X's prefill of that cache.
          prefill_lengths: `[B]`, real tokens of each row in the prefill.
          step: where the tokens stand and which cache slots they take; excludes the three keywords above.

        Returns:
          `[B T out_features]`, or `[B T N H]` without an output projection.

        Raises:
          ValueError: for shapes that do not fit each other, or a call the cache cannot serve.
        """
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        mask = as_mask(mask)
        self._check_call(inputs_q, inputs_kv, mask, bias, step)
        query, key, value = self._heads(inputs_q, inputs_kv, precomputed_qkv, step)
        query, key, value, place, bias = self._remember(query, key, value, mask, bias, step)
        mask = _effective_mask(mask, place)
        attend = functools.partial(self._attend, mask=mask, bias=bias, enable_dropout=enable_dropout)
        x = _fold_beams(attend, query, key, value) if step.memory else attend(query, key, value)
        if precomputed_qkv is not None or not self.output_projection:
            return x
        return self._project_out(x, inputs_q.shape[-1])

    @nn.nowrap
    def _check_call(self, inputs_q: Array, inputs_kv: Array, mask: Mask | None, bias: Array | None, step: Step) -> None:
        retired.refuse_retired(self, **{name: getattr(self, name) for name in _RETIRED if hasattr(self, name)})
        arrays = mask.array if isinstance(mask, ArrayMask) else None
        keys = inputs_kv
        if step.use_cache and not step.memory:  # mask and bias speak of everything cached
            *batch, _, width = inputs_kv.shape
            length = step.slots().key_positions.shape[-1]
            keys = cast(Array, jax.ShapeDtypeStruct((*batch, length, width), inputs_kv.dtype))
        validate_dense_attention_call_parameter_shapes(inputs_q, keys, arrays, bias, self.num_heads)
        self._check_fusing(inputs_q, inputs_kv)

    @nn.nowrap
    def _heads(self, inputs_q, inputs_kv, precomputed_qkv, step: Step) -> tuple[Array, Array, Array]:
        """Query, key and value heads, rotated: `[B T N H]`, `[B S K H]` x 2."""
        if precomputed_qkv is not None:
            query, key, value = self._precomputed(precomputed_qkv)
            return self._place_heads(query, key, value, step)
        if self.kernels_to_fuse == "qkv":
            return self._place_heads(*self._project_all(inputs_q), step)
        query = self._project_query(inputs_q)

        def project() -> tuple[Array, Array]:
            return self._project_key_value(inputs_kv, query.shape[-1])

        if not step.memory:
            return self._place_heads(query, *project(), step)
        query = self._place(self.q_conv, query, self._query_positions(query, step), step)
        key, value = cache.remember(self, lambda: self._place_memory(*project()))
        return query, key, value

    @nn.nowrap
    def _place_heads(self, query: Array, key: Array, value: Array, step: Step) -> tuple[Array, Array, Array]:
        positions = self._query_positions(query, step)
        same = step.decode or step.use_cache or step.positions is not None
        key_positions = positions if same else cache.offsets(key.shape[-3])
        return (
            self._place(self.q_conv, query, positions, step),
            self._place(self.k_conv, key, key_positions, step),
            self._place(self.v_conv, value, None, step),
        )

    @nn.nowrap
    def _place_memory(self, key: Array, value: Array) -> tuple[Array, Array]:
        whole = Step()
        key = self._place(self.k_conv, key, cache.offsets(key.shape[-3]), whole)
        return key, self._place(self.v_conv, value, None, whole)

    @nn.nowrap
    def _place(self, conv: Callable | None, x: Array, positions: Array | None, step: Step) -> Array:
        """Convolves one kind of heads if asked to, and rotates it where positions are given."""
        if conv is not None:
            x = call_part(conv, x, step=step)
        if self.sharding_over_head_dimension:
            x = constrain_heads(x)
        scheme = self._position_scheme()
        return x if positions is None or scheme is None else scheme.rotate(x, positions)

    @nn.nowrap
    def _position_scheme(self) -> PositionScheme | None:
        if self.use_rotary_embedding:
            return Rotary(max_timescale=self.rotary_embedding_max_timescale)
        return self.positions

    @nn.nowrap
    def _query_positions(self, query: Array, step: Step) -> Array:
        return self.counted_positions(step, query.shape[-3]) if step.positions is None else step.positions

    @nn.nowrap
    def _remember(self, query, key, value, mask, bias, step: Step):
        """Adds this call's keys and values to what was cached; a full bias is cut to the decoded row."""
        length = query.shape[-3]
        if step.use_cache and not step.memory:
            return query, *cache.append(self, key, value, step), bias
        index = None
        if step.decode or step.prefill:
            key, value, index = self.append_counted(key, value, step, mask)
            if index is not None and bias is not None:
                bias = t5x_cache.bias_row(bias, index)
        return query, key, value, t5x_cache.place_counted(index, length, key.shape[-3]), bias

    @nn.nowrap
    def _attend(self, query: Array, key: Array, value: Array, *, mask, bias, enable_dropout: bool) -> Array:
        options = {
            "broadcast_dropout": self.broadcast_dropout,
            "rescale_logits": self.rescale_logits,
            "dtype": self.dtype,
            "precision": self.precision,
            "use_extra_logit": self.use_extra_logit,
            "float32_logits": self.float32_logits,
        }
        if self.is_mutable_collection("attention") and not self.is_initializing():
            weights = dot_product_attention_weights(
                query, key, bias, mask=mask, **options, enable_dropout=False
            )  # [B N T S]
            self.sow("attention", "weights", weights)
        dropping = enable_dropout and self.dropout_rate > 0.0
        options |= {
            "dropout_rng": self.make_rng("dropout") if dropping else None,
            "dropout_rate": self.dropout_rate,
            "enable_dropout": enable_dropout,
        }
        if accepts(self.attention_fn, "mask"):
            return self._call_attention_fn(query, key, value, bias=bias, mask=mask, **options)
        return self._call_attention_fn(query, key, value, bias=_as_bias(mask, bias, query, key, self.dtype), **options)

    @nn.nowrap
    def _call_attention_fn(self, query: Array, key: Array, value: Array, **options) -> Array:
        return self.attention_fn(query, key, value, **options)


class MultiHeadDotProductAttention(_DotProductAttention):
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
      attention_fn: what turns heads into values, with the keywords of `dot_product_attention`.
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
      positions: a position scheme, for example `Rotary(fraction=0.5)`.

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
    positions: PositionScheme | None = None

    @nn.nowrap
    def _precomputed(self, precomputed_qkv: Any) -> tuple[Array, Array, Array]:
        raise ValueError(
            "MultiHeadDotProductAttention got precomputed_qkv; expected None. "
            "Use MultiQueryDotProductAttention, whose heads a fused layer may project."
        )


class MultiQueryDotProductAttention(_DotProductAttention):
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
    positions: PositionScheme | None = None

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
    def _place(self, conv: Callable | None, x: Array, positions: Array | None, step: Step) -> Array:
        # The convolutions of keys and values were written for heads without an axis.
        if conv is not None and x.shape[-2] == 1 and conv is not self.q_conv:
            x, conv = call_part(conv, x[..., 0, :], step=step)[..., None, :], None
        return super()._place(conv, x, positions, step)

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


_RETIRED = ("use_aqt", "weight_params", "act_params", "possibly_use_quantized_vars")


def _effective_mask(mask: Mask | None, place: cache.Place) -> Mask | None:
    """The caller's mask at the positions of this call, without the slots that hold nothing."""
    if mask is not None and not place.counted:
        mask = mask.at(place.q_positions, place.k_positions)
    if place.k_valid is None:
        return mask
    valid = Padding(None, place.k_valid)
    return valid if mask is None else mask & valid


def _fold_beams(attend: Callable[..., Array], query: Array, key: Array, value: Array) -> Array:
    """Lets R = B·beams rows of queries attend to B rows of keys: the beams of an item become query positions."""
    rows, length, batch = query.shape[0], query.shape[1], key.shape[0]
    if rows % batch:
        raise ValueError(
            f"{rows} rows of queries meet {batch} rows of encoder keys; expected a multiple, one block of rows "
            "per encoded sequence."
        )
    x = attend(rearrange(query, "(b r) t n h -> b (r t) n h", b=batch), key, value)
    return rearrange(x, "b (r t) n h -> (b r) t n h", t=length)


def _as_bias(mask: Mask | None, bias: Array | None, query: Array, key: Array, dtype: DType) -> Array | None:
    """Mask and bias as one bias, for attention functions that know no mask."""
    if mask is None:
        return bias
    hidden = jnp.asarray(MASKED_LOGIT, dtype)
    masking = jnp.where(mask.dense(query.shape[-3], key.shape[-3]), jnp.zeros((), dtype), hidden)
    return masking if bias is None else masking + bias


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
