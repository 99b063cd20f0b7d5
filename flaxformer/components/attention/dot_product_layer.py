"""The attention layer behind the public classes of `dense_attention`, which own the fields.

    query, key, value = project(inputs)               projections.py   [B T N H], [B S K H]
    query, key = rotate(norm(conv(query, key)))       q_norm, k_norm, flaxformer.components.positions
    key, value, place = append(key, value, step)      caches/, t5x_cache.py (identity when training)
    mask, bias = reach & mask, bias + positions.bias  scoring.py
    x = attention_fn(query, key, value, mask, bias)   attention_functions.py, variants/
    return project_out(x)                             [B T D]

Mask and bias are brought to the positions of the call, and may stay symbolic and lazy down to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
from jaxtyping import Float, Int

from flaxformer import retired
from flaxformer.components.attention import caches, scoring, t5x_cache
from flaxformer.components.attention.attention_functions import dot_product_attention_weights
from flaxformer.components.attention.interface import DenseAttention
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.mask_arrays import validate_dense_attention_call_parameter_shapes
from flaxformer.components.attention.masks import ArrayMask, Mask, as_mask, combine
from flaxformer.components.attention.projections import HeadProjections, constrain_heads
from flaxformer.components.calling import accepts, call_part
from flaxformer.components.positions.rotary import Rotary
from flaxformer.step import Step
from flaxformer.types import Array

_RETIRED = ("use_aqt", "weight_params", "act_params", "possibly_use_quantized_vars")


class DotProductAttention(HeadProjections, t5x_cache.CountedCache, DenseAttention):
    """The implementation; owns no fields."""

    if TYPE_CHECKING:
        dropout_rate: float
        broadcast_dropout: bool
        attention_fn: Callable[..., Array]
        use_extra_logit: bool
        float32_logits: bool

    # Defaults for classes that do not make these a field.
    sharding_over_head_dimension = True
    use_rotary_embedding = False
    rotary_embedding_max_timescale = 10000.0
    q_conv = k_conv = v_conv = None
    q_norm = k_norm = None
    positions = None
    reach = None

    @property
    def takes_lazy_bias(self) -> bool:
        """Whether a lazy bias reaches `attention_fn` as it is, instead of as an array."""
        return scoring.takes_lazy_bias(self.attention_fn)

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Array, "*B T D"],
        inputs_kv: Float[Array, "*B S Dkv"],
        mask: Mask | Array | None = None,
        bias: Array | Bias | None = None,
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
          bias: added to the logits, `[B or 1, N or 1, T, S]`, or lazy (`kernels.biases`).
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
        key, value, place, bias = self._remember(key, value, mask, bias, step, length=query.shape[-3])
        mask, bias = scoring.mask_at(mask, place), scoring.bias_at(bias, place)
        rows = query.shape[:-2]
        query, place = self._stand(query, key, place, step)
        reaches = [self.reach] if step.memory else [self.reach, self.cache.reach]
        mask = combine(mask, *(scoring.own_mask_at(reach, place) for reach in reaches))
        bias = scoring.add(bias, scoring.bias_of(self._position_scheme(), query, key, place))
        x = self._attend(query, key, value, mask=mask, bias=bias, enable_dropout=enable_dropout)
        x = x.reshape(*rows, *x.shape[-2:])  # beams unfolded: [R T N H]
        if precomputed_qkv is not None or not self.output_projection:
            return x
        return self._project_out(x, inputs_q.shape[-1])

    @nn.nowrap
    def _check_call(
        self, inputs_q: Array, inputs_kv: Array, mask: Mask | None, bias: Array | Bias | None, step: Step
    ) -> None:
        retired.refuse_retired(self, **{name: getattr(self, name) for name in _RETIRED if hasattr(self, name)})
        self._check_parts(bias)
        array = mask.array if isinstance(mask, ArrayMask) else None
        keys = inputs_kv
        if step.use_cache and not step.memory:  # mask and bias speak of everything cached
            *batch, _, width = inputs_kv.shape
            length = step.slots().key_positions.shape[-1]
            keys = cast(Array, jax.ShapeDtypeStruct((*batch, length, width), inputs_kv.dtype))
        given = None if isinstance(bias, Bias) else bias
        validate_dense_attention_call_parameter_shapes(inputs_q, keys, array, given, self.num_heads)
        self._check_fusing(inputs_q, inputs_kv)

    @nn.nowrap
    def _check_parts(self, bias: Array | Bias | None) -> None:
        """Refuses objects that nothing would be asked of, or that mean something else."""
        scheme = self.positions
        if scheme is not None and not any(hasattr(scheme, name) for name in ("rotate", "bias", "scores_bias")):
            raise ValueError(
                f"positions is {scheme!r}; expected a position scheme such as Rotary(), or a module, that has a method "
                "`rotate`, `bias` or `scores_bias`."
            )
        if not isinstance(self.cache, caches.Cache):
            raise ValueError(f"cache is {self.cache!r}; expected a cache such as FullCache() or RingCache(512).")
        if bias is None or isinstance(bias, Bias):
            return
        kind = str(getattr(bias, "dtype", type(bias).__name__))
        if kind == "bool" or not hasattr(bias, "dtype"):
            raise ValueError(
                f"bias is of type {kind}; expected numbers to add to the logits, an array or a lazy bias. What says "
                "who may see whom is a mask: pass it as `mask`."
            )

    @nn.nowrap
    def _heads(self, inputs_q, inputs_kv, precomputed_qkv, step: Step) -> tuple[Array, Array, Array]:
        """Query, key and value heads, normalised and rotated: `[B T N H]`, `[B S K H]` x 2."""
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
        query = self._place(self.q_conv, self.q_norm, query, self._query_positions(query, step), step)
        key, value = caches.remember(self, lambda: self._place_memory(*project()))
        return query, key, value

    @nn.nowrap
    def _place_heads(self, query: Array, key: Array, value: Array, step: Step) -> tuple[Array, Array, Array]:
        positions = self._query_positions(query, step)
        same = step.decode or step.use_cache or step.positions is not None
        key_positions = positions if same else caches.offsets(key.shape[-3])
        return (
            self._place(self.q_conv, self.q_norm, query, positions, step),
            self._place(self.k_conv, self.k_norm, key, key_positions, step),
            self._place(self.v_conv, None, value, None, step),
        )

    @nn.nowrap
    def _place_memory(self, key: Array, value: Array) -> tuple[Array, Array]:
        whole = Step()
        key = self._place(self.k_conv, self.k_norm, key, caches.offsets(key.shape[-3]), whole)
        return key, self._place(self.v_conv, None, value, None, whole)

    @nn.nowrap
    def _place(
        self, conv: Callable | None, norm: Callable | None, x: Array, positions: Array | None, step: Step
    ) -> Array:
        """Convolves and normalises one kind of heads if asked to, and rotates it where positions are given."""
        for part in (conv, norm):
            x = x if part is None else call_part(part, x, step=step)
        if self.sharding_over_head_dimension:
            x = constrain_heads(x)
        rotate = getattr(self._position_scheme(), "rotate", None)
        return x if positions is None or rotate is None else rotate(x, positions)

    @nn.nowrap
    def _position_scheme(self) -> Any:
        if self.use_rotary_embedding:
            return Rotary(max_timescale=self.rotary_embedding_max_timescale)
        return self.positions

    @nn.nowrap
    def _query_positions(self, query: Array, step: Step) -> Int[Array, "#B T"]:
        return self.counted_positions(step, query.shape[-3]) if step.positions is None else step.positions

    @nn.nowrap
    def _remember(self, key, value, mask, bias, step: Step, *, length: int):
        """Adds this call's keys and values to what was cached; a full bias is cut to the decoded row."""
        if step.use_cache and not step.memory:
            key, value, place = self.cache.append(self, key, value, step)
            self._check_width(key, bias)
            return key, value, place, bias
        index = None
        if step.decode or step.prefill:
            key, value, index = self.append_counted(key, value, step, mask)
            if index is not None and bias is not None and not isinstance(bias, Bias):
                bias = t5x_cache.bias_row(bias, index)
        return key, value, t5x_cache.place_counted(index, length, key.shape[-3]), bias

    @nn.nowrap
    def _check_width(self, key: Array, bias: Array | Bias | None) -> None:
        """Refuses a bias for every slot of the sequence beside a cache that has fewer."""
        if bias is not None and not isinstance(bias, Bias) and bias.shape[-1] not in (1, key.shape[-3]):
            raise ValueError(
                f"bias has shape {bias.shape} and {self.cache} holds {key.shape[-3]} keys; expected a bias for these. "
                "Give the layer a position scheme (positions=...) instead, which is asked at the positions that are "
                "kept."
            )

    @nn.nowrap
    def _stand(self, query: Array, key: Array, place: caches.Place, step: Step) -> tuple[Array, caches.Place]:
        """The queries to attend with, beams folded, and where they and the keys truly stand."""
        if step.memory:
            positions = self._query_positions(query, step)
            query, positions = scoring.fold_beams(query, positions, key.shape[0])
            return query, caches.Place(positions, caches.offsets(key.shape[-3]))
        if place.counted and step.positions is not None:
            return query, caches.Place(step.positions, step.positions)
        return query, place

    @nn.nowrap
    def _attend(self, query: Array, key: Array, value: Array, *, mask, bias, enable_dropout: bool) -> Array:
        if not self.takes_lazy_bias:
            bias = self._as_array(bias, query, key)
        options = {
            "broadcast_dropout": self.broadcast_dropout,
            "rescale_logits": self.rescale_logits,
            "dtype": self.dtype,
            "precision": self.precision,
            "use_extra_logit": self.use_extra_logit,
            "float32_logits": self.float32_logits,
        }
        if self.is_mutable_collection("attention") and not self.is_initializing():
            weights = self._weights(query, key, bias=bias, mask=mask, **options)
            self.sow("attention", "weights", weights)
        dropping = enable_dropout and self.dropout_rate > 0.0
        options |= {
            "dropout_rng": self.make_rng("dropout") if dropping else None,
            "dropout_rate": self.dropout_rate,
            "enable_dropout": enable_dropout,
        }
        if accepts(self.attention_fn, "mask"):
            return self._call_attention_fn(query, key, value, bias=bias, mask=mask, **options)
        bias = scoring.as_one_bias(mask, self._as_array(bias, query, key), query, key, self.dtype)
        return self._call_attention_fn(query, key, value, bias=bias, **options)

    @nn.nowrap
    def _as_array(self, bias: Array | Bias | None, query: Array, key: Array) -> Array | None:
        return scoring.as_array(bias, query, key, self.rescale_logits)

    @nn.nowrap
    def _weights(self, query: Array, key: Array, *, bias: Array | Bias | None, **options) -> Float[Array, "*B N T S"]:
        """The weights as the attention function tells them, else those of `dot_product_attention`."""
        weigh = getattr(self.attention_fn, "weights", None)
        options["enable_dropout"] = False
        if weigh is None:
            return dot_product_attention_weights(query, key, self._as_array(bias, query, key), **options)
        return weigh(query, key, bias=bias, **options)

    @nn.nowrap
    def _call_attention_fn(self, query: Array, key: Array, value: Array, **options) -> Array:
        return self.attention_fn(query, key, value, **options)
