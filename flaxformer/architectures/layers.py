"""One encoder layer and one decoder layer, of any attention, MLP, norm and dropout.

Where the norm stands is an object, `residual`: `PreNorm()` for T5, `PostNorm()` for BERT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
from jax import numpy as jnp
from jaxtyping import Float

from flaxformer import activation_partitioning
from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.architectures.position_bias import (
    check_at_most_one,
    cross_attention_bias,
    self_attention_bias,
    takes_lazy_bias,
)
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import Mask, as_mask
from flaxformer.components.calling import accepts, call_part, note_old_convention
from flaxformer.errors import PartError, ShapeError
from flaxformer.step import Step
from flaxformer.types import Array

Transform = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class PreNorm:
    """`x + branch(norm(x))`. Source: Xiong et al. 2020, arXiv:2002.04745."""

    def before(self, x: Array, norm: Transform) -> Array:
        """What the branch reads."""
        return norm(x)

    def after(self, x: Array, y: Array, norm: Transform) -> Array:
        """The residual `x` joined with the branch's output `y`."""
        return x + y


@dataclasses.dataclass(frozen=True)
class PostNorm:
    """`norm(x + branch(x))`. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1."""

    def before(self, x: Array, norm: Transform) -> Array:
        """What the branch reads."""
        return x

    def after(self, x: Array, y: Array, norm: Transform) -> Array:
        """The residual `x` joined with the branch's output `y`."""
        return norm(x + y)


def attend_with(attention: nn.Module, inputs_q: Array, inputs_kv: Array, mask, bias, step: Step, **offered) -> Array:
    """Calls an attention module; one that knows no `step` is given its mask as an array.

    Raises:
      PartError: when it knows no `step`, and its keys and values are kept by one.
    """
    if not accepts(attention, "step"):
        if step.use_cache and not step.memory:
            raise PartError(
                f"{type(attention).__name__} takes no `step`, and its keys are to be cached by one; expected an "
                "attention module that does. Name the keyword `step` in its __call__, or decode by T5X's protocol, "
                "flaxformer.training.models.DecoderOnlyModel(...).predict_batch, which passes decode and prefill."
            )
        if isinstance(mask, Mask):
            mask = mask.dense(inputs_q.shape[-2], inputs_kv.shape[-2])
    return call_part(attention, inputs_q, inputs_kv, mask, bias, step=step, **offered)


class BaseLayer(nn.Module):
    """What all layers do alike; owns no fields."""

    @nn.nowrap
    def _setup_bias(self) -> None:
        own, shared = self.relative_position_bias_factory, self.shared_relative_position_bias
        check_at_most_one(own, shared, type(self).__name__)
        self.relpos_bias = shared if own is None else own()

    @nn.nowrap
    def _make_norm(self) -> nn.Module:
        norm = self.layer_norm_factory()
        note_old_convention(norm)
        return norm

    def _create_residuals_and_queries(self, layer_input: Array, x: Array, logit_mask: Array | None, **kwargs: Any):
        """For subclasses whose queries are fewer than their keys: `(residual, queries, query mask)`."""
        if kwargs:
            raise ValueError(
                f"{type(self).__name__} got the arguments {sorted(kwargs)}; expected none beyond the documented ones. "
                "A subclass that takes more overrides _create_residuals_and_queries."
            )
        return layer_input, x, logit_mask

    @nn.nowrap
    def _constrain(self, x: Array) -> Array:
        return activation_partitioning.with_sharding_migration(
            x, self.activation_partitioning_dims, ("batch", "length", "embed")
        )

    @nn.nowrap
    def _check_rank(self, x: Array, name: str) -> None:
        if x.ndim != 3:
            raise ShapeError(
                f"{type(self).__name__} got {name} of shape {x.shape}; expected rank 3, [batch, length, width]."
            )

    @nn.nowrap
    def _norm(self, module: nn.Module, logit_mask: Array | None, step: Step) -> Transform:
        """The norm as the residual scheme applies it: constrained, and zero at padding where a mask is given."""

        def normalise(x: Array) -> Array:
            x = self._constrain(call_part(module, x, step=step))
            return x if logit_mask is None else x * logit_mask

        return normalise

    @nn.nowrap
    def _add(self, x: Array, branch: Transform, norm: Transform, dropout: nn.Module, enable_dropout: bool) -> Array:
        """`x` with one residual branch added."""
        y = dropout(branch(self.residual.before(x, norm)), deterministic=not enable_dropout)
        return self._constrain(self.residual.after(x, y, norm))

    @nn.nowrap
    def _finish(self, x: Array) -> Any:
        if self.sow_intermediates:
            self.sow("intermediates", "activations", x)
        return (x, None) if self.scanned else x


class EncoderLayer(BaseLayer, ParameterRemappable):
    """Self-attention and MLP, each in a residual branch; or both in one when `parallel`.

    Attributes:
      attention: self-attention module.
      mlp: feed-forward module; one that only takes `x` is fine.
      dropout_factory: makes modules called as `(x, deterministic=...)`.
      layer_norm_factory: makes modules called as `(x)`.
      relative_position_bias_factory: makes this layer's own position bias.
      shared_relative_position_bias: the bias module the stack shares; excludes the previous. Attention that names the
        keyword `bias_module` is given either, beside what it gave.
      activation_partitioning_dims: accepted for old configurations: 1, 2 or None.
      parallel: attention and MLP side by side, scaled by 1/√2. The logit mask is then ignored, as published
        parallel checkpoints saw it.
      sow_intermediates: record the output as `intermediates/activations`.
      scanned: return `(output, None)`, as `nn.scan` wants it.
      residual: where the norm stands.
    """

    attention: nn.Module
    mlp: nn.Module
    dropout_factory: Callable[[], nn.Module]
    layer_norm_factory: Callable[[], nn.Module]
    relative_position_bias_factory: Callable[[], nn.Module] | None = None
    shared_relative_position_bias: nn.Module | None = None
    activation_partitioning_dims: int | None = 1
    parallel: bool = False
    sow_intermediates: bool = False
    scanned: bool = False
    residual: PreNorm | PostNorm = PreNorm()

    def setup(self) -> None:
        self._setup_bias()
        note_old_convention(self.attention, self.mlp)
        if self.parallel:
            self.layer_norm = self._make_norm()
            self.dropout = self.dropout_factory()
            return
        self.pre_attention_layer_norm = self._make_norm()
        self.pre_mlp_layer_norm = self._make_norm()
        self.post_attention_dropout = self.dropout_factory()
        self.post_mlp_dropout = self.dropout_factory()

    @property
    def takes_lazy_bias(self) -> bool:
        """Whether `position_bias` may be a rule."""
        return takes_lazy_bias(self.attention)

    def get_bias(self, layer_input: Array) -> Array | Bias | None:
        """The position bias `[1 N T T]` for `layer_input [B T D]`, or None."""
        return self_attention_bias(
            self.relpos_bias, layer_input, bidirectional=True, step=Step(), lazy=self.takes_lazy_bias
        )

    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        encoder_mask: Mask | Array | None = None,
        *,
        logit_mask: Float[Array, "B T 1"] | None = None,
        enable_dropout: bool = True,
        step: Step | None = None,
        position_bias: Float[Array, "#B N T T"] | Bias | None = None,
    ) -> Any:
        """Maps `inputs [B T D]` to the same shape.

        Args:
          inputs: the layer's input.
          encoder_mask: who may see whom.
          logit_mask: 1 at real tokens, 0 at padding; multiplied onto the normalised inputs.
          enable_dropout: False switches dropout off.
          step: where the tokens stand.
          position_bias: the stack's bias, computed once for all layers; None asks the layer's own.
        """
        self._check_rank(inputs, "inputs")
        bias = self.get_bias(inputs) if position_bias is None else position_bias
        return self._finish(self._encode(inputs, encoder_mask, bias, logit_mask, enable_dropout, step or Step()))

    @nn.nowrap
    def _encode(self, inputs, encoder_mask, bias, logit_mask, enable_dropout: bool, step: Step) -> Array:
        """The input with both branches added."""
        offered = {"step": step, "enable_dropout": enable_dropout}

        def attend(x: Array) -> Array:
            return attend_with(self.attention, x, x, encoder_mask, bias, bias_module=self.relpos_bias, **offered)

        def feed_forward(x: Array) -> Array:
            return call_part(self.mlp, x, **offered)

        def both(x: Array) -> Array:
            return (attend(x) + feed_forward(x)) * 2**-0.5

        def add(x: Array, branch: Transform, norm: nn.Module, dropout: nn.Module, logit_mask: Array | None) -> Array:
            return self._add(x, branch, self._norm(norm, logit_mask, step), dropout, enable_dropout)

        x = self._constrain(inputs)
        if self.parallel:
            return add(x, both, self.layer_norm, self.dropout, None)
        x = add(x, attend, self.pre_attention_layer_norm, self.post_attention_dropout, logit_mask)
        return add(x, feed_forward, self.pre_mlp_layer_norm, self.post_mlp_dropout, logit_mask)


class DecoderLayer(BaseLayer, ParameterRemappable):
    """Causal self-attention, attention to the encoder, and MLP.

    Attributes:
      self_attention: module called with the same array for queries and keys.
      encoder_decoder_attention: module that attends to the encoder, or None in a decoder-only model.
      mlp: feed-forward module; one that only takes `x` is fine.
      dropout_factory, layer_norm_factory, relative_position_bias_factory, shared_relative_position_bias,
      activation_partitioning_dims, sow_intermediates, scanned, residual: as in `EncoderLayer`.
      parallel: all branches side by side, scaled by 1/√(number of branches).
    """

    self_attention: nn.Module
    encoder_decoder_attention: nn.Module | None
    mlp: nn.Module
    dropout_factory: Callable[[], nn.Module]
    layer_norm_factory: Callable[[], nn.Module]
    relative_position_bias_factory: Callable[[], nn.Module] | None = None
    shared_relative_position_bias: nn.Module | None = None
    activation_partitioning_dims: int | None = 1
    parallel: bool = False
    sow_intermediates: bool = False
    scanned: bool = False
    residual: PreNorm | PostNorm = PreNorm()

    def setup(self) -> None:
        self._setup_bias()
        note_old_convention(self.self_attention, self.encoder_decoder_attention, self.mlp)
        if self.parallel:
            self.layer_norm = self._make_norm()
            self.dropout = self.dropout_factory()
            return
        self.pre_self_attention_layer_norm = self._make_norm()
        self.post_self_attention_dropout = self.dropout_factory()
        self.pre_cross_attention_layer_norm = self._make_norm()
        self.post_cross_attention_dropout = self.dropout_factory()
        self.pre_mlp_layer_norm = self._make_norm()
        self.post_mlp_dropout = self.dropout_factory()

    @property
    def takes_lazy_bias(self) -> bool:
        """Whether `position_bias` may be a rule."""
        return takes_lazy_bias(self.self_attention)

    def get_bias(
        self,
        max_decode_length: int | None,
        decode: bool,
        layer_input: Array,
        encoded: Array | None,
        step: Step | None = None,
    ) -> tuple[Array | Bias | None, Array | None]:
        """The biases of self-attention and of attention to the encoder; None where there is none."""
        step = step or Step(decode=decode)
        own = self_attention_bias(
            self.relpos_bias,
            layer_input,
            bidirectional=False,
            step=step,
            max_decode_length=max_decode_length,
            lazy=self.takes_lazy_bias,
        )
        return own, cross_attention_bias(self.relpos_bias, layer_input, encoded)

    def __call__(
        self,
        targets: Float[Array, "B T D"],
        encoded: Float[Array, "Benc S Denc"] | None,
        decoder_mask: Mask | Array | None = None,
        encoder_decoder_mask: Mask | Array | None = None,
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
        """Maps `targets [B T D]` to the same shape.

        Args:
          targets: the layer's input.
          encoded: the encoder's output, or None. Under a driven cache its batch may be a divisor of B.
          decoder_mask: who may see whom among the targets.
          encoder_decoder_mask: which encoder positions the targets may see.
          logit_mask: 1 at real tokens, 0 at padding; multiplied onto the normalised inputs.
          enable_dropout: False switches dropout off.
          decode, max_decode_length, prefill, prefill_lengths: T5X's protocol; see `Step`.
          step: where the tokens stand; excludes the four before.
          position_bias: the stack's bias, computed once for all layers; None asks the layer's own.
          **kwargs: for subclasses; see `_create_residuals_and_queries`.
        """
        self._check_rank(targets, "targets")
        self._check_encoder(encoded)
        if prefill and prefill_lengths is None:
            prefill_lengths = count_first_row(decoder_mask, targets.shape[-2])
        step = step or Step.from_keywords(decode, prefill, prefill_lengths)
        bias, cross_bias = (
            self.get_bias(max_decode_length, step.decode, targets, encoded, step)
            if position_bias is None
            else (position_bias, None)
        )
        branches = self._branches(encoded, decoder_mask, encoder_decoder_mask, bias, cross_bias, step, enable_dropout)
        x = self._constrain(targets)
        combine = self._side_by_side if self.parallel else self._one_after_another
        return self._finish(combine(x, *branches, logit_mask, step, enable_dropout, kwargs))

    @nn.nowrap
    def _branches(self, encoded, decoder_mask, encoder_decoder_mask, bias, cross_bias, step, enable_dropout):
        """The three branches as functions: own(queries, x), cross(x) or None, feed_forward(x)."""
        offered = {"step": step, "enable_dropout": enable_dropout}

        def own(queries: Array, x: Array) -> Array:
            return attend_with(self.self_attention, queries, x, decoder_mask, bias, **offered)

        def cross(x: Array) -> Array:
            attention, memory = cast(nn.Module, self.encoder_decoder_attention), offered | {"step": step.to_memory()}
            return attend_with(attention, x, encoded, encoder_decoder_mask, cross_bias, **memory)

        def feed_forward(x: Array) -> Array:
            return call_part(self.mlp, x, **offered)

        return own, None if encoded is None else cross, feed_forward

    @nn.nowrap
    def _one_after_another(self, x, own, cross, feed_forward, logit_mask, step, enable_dropout, extra) -> Array:
        norm = self._norm(self.pre_self_attention_layer_norm, logit_mask, step)
        normalised = self.residual.before(x, norm)
        x, queries, logit_mask = self._create_residuals_and_queries(x, normalised, logit_mask, **extra)
        y = self.post_self_attention_dropout(own(queries, normalised), deterministic=not enable_dropout)
        x = self._constrain(self.residual.after(x, y, norm))
        if cross is not None:
            norm = self._norm(self.pre_cross_attention_layer_norm, logit_mask, step)
            x = self._add(x, cross, norm, self.post_cross_attention_dropout, enable_dropout)
        norm = self._norm(self.pre_mlp_layer_norm, logit_mask, step)
        return self._add(x, feed_forward, norm, self.post_mlp_dropout, enable_dropout)

    @nn.nowrap
    def _side_by_side(self, x, own, cross, feed_forward, logit_mask, step, enable_dropout, extra) -> Array:
        norm = self._norm(self.layer_norm, None, step)
        normalised = self.residual.before(x, norm)
        x, queries, _ = self._create_residuals_and_queries(x, normalised, logit_mask, **extra)
        outputs = [own(queries, normalised), feed_forward(queries)]
        outputs += [] if cross is None else [cross(queries)]
        y = self.dropout(sum(outputs) * len(outputs) ** -0.5, deterministic=not enable_dropout)
        return self._constrain(self.residual.after(x, y, norm))

    @nn.nowrap
    def _check_encoder(self, encoded: Array | None) -> None:
        if encoded is not None and self.encoder_decoder_attention is None:
            raise ValueError(
                "DecoderLayer got encoder outputs but encoder_decoder_attention is None; expected None for both, "
                "or an attention module to read them."
            )


def count_first_row(mask: Mask | Array | None, length: int) -> Array:
    """Keys that the first query may see, `[B]`: what T5X takes for the length of a prompt."""
    if mask is None:
        raise ValueError("prefill got neither prefill_lengths nor a decoder_mask to count the prompt; expected one.")
    return jnp.sum(as_mask(mask).dense(length, length)[:, 0, 0], axis=-1, dtype=jnp.int32)  # pyright: ignore[reportOptionalMemberAccess]
