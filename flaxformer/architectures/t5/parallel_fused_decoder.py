"""A decoder layer whose attention and MLP share their projections, for fast decoding.

Query heads and MLP pre-activations come out of one product with the input, and both outputs go through one product
back. Each of the N heads carries H query features and F/N features of every MLP branch.

Source: Wang & Komatsuzaki 2021 (GPT-J, parallel layers); Chowdhery et al. 2022, arXiv:2204.02311, section 2;
Shazeer 2019, arXiv:1911.02150 (one key and value head).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer import retired
from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.architectures.layers import BaseLayer, count_first_row
from flaxformer.architectures.position_bias import self_attention_bias
from flaxformer.components import dense
from flaxformer.components.attention.dense_attention import MultiQueryDotProductAttention
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import Mask
from flaxformer.components.calling import call_part
from flaxformer.errors import PartError, ShapeError
from flaxformer.step import Step
from flaxformer.types import Array, Initializer


class ParallelFusedDecoderLayer(BaseLayer, ParameterRemappable):
    """`x + drop(W_o · [attention(q, k, v), mlp(w)])` with `q, w = W_q · norm(x)` and `k, v = W_kv · norm(x)`.

    The fused query kernel is never scaled, so the attention should have `rescale_logits=True`. The logit mask is
    ignored, as published parallel checkpoints saw it.

    Attributes:
      self_attention: a `MultiQueryDotProductAttention` with `out_features`; says bias, dtype and initialisers.
      mlp: an `MlpBlock` with `precomputed_intermediates=True` and `out_dim`; its width must divide by the heads.
      dropout_factory: makes the dropout of the layer's output.
      layer_norm_factory: makes the norm of its input.
      relative_position_bias_factory, shared_relative_position_bias, sow_intermediates, scanned: as in `DecoderLayer`.
      activation_partitioning_dims: accepted for old configurations: 1, 2 or None.
      use_aqt, weight_params, act_params, possibly_use_quantized_vars, is_quant_finetune_mode: retired.
      q_wi_fused_kernel_init, kv_fused_kernel_init, o_wo_fused_kernel_init: None means the attention's `kernel_init`.
      dense_general_cls_factory: returns the class of the projections; None means `DenseGeneral`.
    """

    self_attention: nn.Module
    mlp: nn.Module
    dropout_factory: Callable[[], nn.Module]
    layer_norm_factory: Callable[[], nn.Module]
    relative_position_bias_factory: Callable[[], nn.Module] | None = None
    shared_relative_position_bias: nn.Module | None = None
    activation_partitioning_dims: int | None = 1
    sow_intermediates: bool = False
    scanned: bool = False
    use_aqt: bool = False
    weight_params: Any = None
    act_params: Any = None
    possibly_use_quantized_vars: bool = False
    is_quant_finetune_mode: bool = False
    q_wi_fused_kernel_init: Initializer | None = None
    kv_fused_kernel_init: Initializer | None = None
    o_wo_fused_kernel_init: Initializer | None = None
    dense_general_cls_factory: Callable[[], Callable[..., nn.Module]] | None = None

    def setup(self) -> None:
        self._check_parts()
        self._setup_bias()
        self.layer_norm = self.layer_norm_factory()
        self.dropout = self.dropout_factory()
        heads, attention = self.self_attention.num_heads, self.self_attention
        self.head_width = attention.head_dim or attention.qkv_features // heads
        self.mlp_width = self.mlp.intermediate_dim // heads
        fused = self.head_width + len(self.mlp.activations) * self.mlp_width
        self.q_wi_fused = self._dense((heads, fused), self.q_wi_fused_kernel_init, ["embed", "heads", "q_wi_fused"])
        self.kv_fused = self._dense(
            (1, 2 * self.head_width), self.kv_fused_kernel_init, ["embed", "multiquery_heads", "kv_fused"]
        )
        names = ["heads", "o_wo_fused", "embed"]
        self.o_wo_fused = self._dense(attention.out_features, self.o_wo_fused_kernel_init, names, axis=(-2, -1))

    @nn.nowrap
    def _check_parts(self) -> None:
        retired.refuse_retired(
            self,
            use_aqt=self.use_aqt,
            weight_params=self.weight_params,
            act_params=self.act_params,
            possibly_use_quantized_vars=self.possibly_use_quantized_vars,
            is_quant_finetune_mode=self.is_quant_finetune_mode,
        )
        attention, mlp = self.self_attention, self.mlp
        if not isinstance(attention, MultiQueryDotProductAttention):
            raise PartError(
                f"self_attention is a {type(attention).__name__}; expected a MultiQueryDotProductAttention, "
                "whose heads this layer projects."
            )
        if attention.out_features is None:
            raise ValueError("self_attention.out_features is None; expected the width of the layer.")
        if attention.head_dim is None and attention.qkv_features is None:
            raise ValueError("self_attention has neither head_dim nor qkv_features; expected one, to size the heads.")
        if mlp.intermediate_dim % attention.num_heads:
            raise ValueError(
                f"mlp.intermediate_dim={mlp.intermediate_dim} does not divide by num_heads={attention.num_heads}; "
                "expected a multiple, since every head carries an equal share of the MLP."
            )

    @nn.nowrap
    def _dense(self, features: Any, init: Initializer | None, names: list[str], axis: Any = -1) -> nn.Module:
        make = dense.DenseGeneral if self.dense_general_cls_factory is None else self.dense_general_cls_factory()
        attention = self.self_attention
        return make(
            axis=axis,
            features=features,
            use_bias=attention.use_bias,
            dtype=attention.dtype,
            kernel_init=init or attention.kernel_init,
            bias_init=attention.bias_init,
            reshape_kernel=False,
            kernel_axis_names=names,
        )

    def __call__(
        self,
        targets: Float[Array, "B T D"],
        encoded: None = None,
        decoder_mask: Mask | Array | None = None,
        encoder_decoder_mask: None = None,
        *,
        logit_mask: Float[Array, "B T 1"] | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
        step: Step | None = None,
        position_bias: Float[Array, "#B N T S"] | Bias | None = None,
        **kwargs: Any,
    ) -> Any:
        """Maps `targets [B T D]` to the same shape; the arguments are those of `DecoderLayer` without an encoder."""
        if encoded is not None or encoder_decoder_mask is not None:
            raise ShapeError("ParallelFusedDecoderLayer got encoder outputs; expected None: it only attends to itself.")
        self._check_rank(targets, "targets")
        if prefill and prefill_lengths is None:
            prefill_lengths = count_first_row(decoder_mask, targets.shape[-2])
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        bias = position_bias
        if bias is None:  # computed at every step, so nothing of it is cached
            uncached = dataclasses.replace(step, decode=False)
            bias = self_attention_bias(
                self.relpos_bias, targets, bidirectional=False, step=uncached, max_decode_length=max_decode_length
            )
        offered = {"step": step, "enable_dropout": enable_dropout}

        normalised = self._constrain(call_part(self.layer_norm, self._constrain(targets), step=step))
        residual, queries, _ = self._create_residuals_and_queries(targets, normalised, logit_mask, **kwargs)
        query, branches = self._split_query(self.q_wi_fused(queries))
        key, value = jnp.split(self.kv_fused(normalised)[..., 0, :], 2, axis=-1)  # [B T H] x 2
        heads = (query, key, value)
        attended = self.self_attention(queries, normalised, decoder_mask, bias, precomputed_qkv=heads, **offered)
        activated = call_part(self.mlp, branches, **offered)  # [B T N F/N]
        y = self.o_wo_fused(jnp.concatenate([attended, activated], axis=-1))
        y = self._constrain(residual + self.dropout(y, deterministic=not enable_dropout))
        return self._finish(y)

    @nn.nowrap
    def _split_query(self, fused: Float[Array, "B T N X"]) -> tuple[Array, list[Array]]:
        """Query heads `[B T N H]` and the MLP's pre-activations, one `[B T N F/N]` per activation."""
        count = len(self.mlp.activations)
        edges = [self.head_width + i * self.mlp_width for i in range(count)]
        query, *branches = jnp.split(fused, edges, axis=-1)
        return query, branches
