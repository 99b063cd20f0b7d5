"""Stacks: token ids to hidden states (`Encoder`) or to logits (`Decoder`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.architectures.layer_stack import LayerStack
from flaxformer.architectures.layers import count_first_row
from flaxformer.architectures.repeat import LayerRemat
from flaxformer.components import embedding
from flaxformer.components.attention.dense_attention import get_decoder_logit_mask
from flaxformer.components.attention.masks import Mask
from flaxformer.components.calling import call_part
from flaxformer.components.positions.counter import CountedPositions
from flaxformer.errors import ShapeError
from flaxformer.step import Step
from flaxformer.types import Array, DType


class Encoder(LayerStack, ParameterRemappable):
    """Embeds tokens and runs encoder layers: `[B T]` ids to `[B T D]`.

    Attributes:
      layer_factory: makes a layer; called with `shared_relative_position_bias=` (a module or None). Of several, each
        layer takes the next, and then the first again.
      input_dropout_factory: makes the dropout after embedding.
      output_dropout_factory: makes the dropout after the final norm.
      layer_norm_factory: makes the final norm; None: there is none.
      num_layers: how many layers.
      dtype: embeddings are cast to it after dropout.
      layer_remat: what the backward pass computes again, a `LayerRemat` or its name.
      scan_layers: run the layers as one scan over stacked parameters; the layer then needs `scanned=True`.
      spmd_annotations: accepted for old configurations and unused.
      shared_relative_position_bias_factory: makes one position bias for all layers; not with `scan_layers`.
      scan_axis: where parameters are stacked.
      token_embedder_factory: makes the token table; exactly one of this and the next.
      shared_token_embedder: a token table owned by the parent.
      position_embedder_factory: makes absolute positions.
      sow_intermediates: record token ids, embeddings and outputs in `intermediates`.
      capture_gradients: let the gradient with respect to the embedded input be read from `grads`.
      embedding_transform_factory: makes what the summed embeddings pass through before dropout, such as a norm or a
        projection.
      token_type_embedder_factory: makes the embedding of token types (0 where a call names none), added to the others.
      number_tokens: `(tokens, valid) -> positions [B T]` where a call names none; consecutive from 0 when None.
      layer_order: which layer runs when, by number; each once, in turn, when None. What runs twice shares parameters,
        as in ALBERT (Lan et al. 2020). Not with `scan_layers`.
    """

    layer_factory: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]]
    input_dropout_factory: Callable[[], nn.Module]
    output_dropout_factory: Callable[[], nn.Module]
    layer_norm_factory: Callable[[], nn.Module] | None
    num_layers: int
    dtype: DType = jnp.float32
    layer_remat: LayerRemat | str = LayerRemat.LEGACY
    scan_layers: bool = False
    spmd_annotations: Any = None
    shared_relative_position_bias_factory: Callable[[], nn.Module] | None = None
    scan_axis: int = 1
    token_embedder_factory: Callable[[], nn.Module] | None = None
    shared_token_embedder: embedding.Embedder | None = None
    position_embedder_factory: Callable[[], nn.Module] | None = None
    sow_intermediates: bool = False
    capture_gradients: bool = False
    embedding_transform_factory: Callable[[], nn.Module] | None = None
    token_type_embedder_factory: Callable[[], nn.Module] | None = None
    number_tokens: Callable[[Array, Array], Array] | None = None
    layer_order: Sequence[int] | None = None

    _scan_name = "encoder"

    def setup(self) -> None:
        self._setup_common()
        self.input_dropout = self.input_dropout_factory()
        self._setup_layers(self._construct_scanned_encoder)
        self.encoder_norm = None if self.layer_norm_factory is None else self.layer_norm_factory()
        self.output_dropout = self.output_dropout_factory()

    def _construct_scanned_encoder(self, lyrf: Callable[[], nn.Module], num_layers: int) -> nn.Module:
        """The module that stands for all layers of a scanned stack; see `Decoder._construct_scanned_decoder`."""
        del num_layers
        return lyrf()

    def embed_and_combine_inputs(
        self,
        inputs: Num[Array, "B T"],
        inputs_positions: Array | None = None,
        *,
        segment_ids: Array | None = None,
        enable_dropout: bool = True,
        token_types: Array | None = None,
        valid: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeds the tokens, their positions and types, drops out, casts to `dtype`."""
        more = {"segment_ids": segment_ids, "token_types": token_types, "valid": valid}
        x = self._embed(inputs, inputs_positions, "inputs", decode=False, **more)
        return self.input_dropout(x, deterministic=not enable_dropout).astype(self.dtype)

    def encode_from_continuous_inputs(
        self,
        inputs: Float[Array, "B T D"],
        encoder_mask: Mask | Array | None = None,
        logit_mask: Float[Array, "B T 1"] | None = None,
        *,
        enable_dropout: bool = True,
    ) -> Float[Array, "B T D"]:
        """The layers and the final norm on embedded inputs."""
        bias = self._shared_bias(inputs, bidirectional=True, step=Step(), max_decode_length=None)
        arrays = {"logit_mask": logit_mask, "position_bias": bias}
        x = self._run(inputs, (encoder_mask,), arrays, {"enable_dropout": enable_dropout})
        x = x if self.encoder_norm is None else call_part(self.encoder_norm, x)
        x = self.output_dropout(x, deterministic=not enable_dropout)
        return x if logit_mask is None else logit_mask * x

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        inputs_positions: Array | None = None,
        encoder_mask: Mask | Array | None = None,
        *,
        segment_ids: Array | None = None,
        enable_dropout: bool = True,
        token_types: Array | None = None,
        valid: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Encodes token ids `[B T]`; 0 is padding.

        Args:
          inputs: token ids.
          inputs_positions: `[B T]`, positions for the position embedder; 0, 1, ... when None.
          encoder_mask: who may see whom.
          segment_ids: `[B T]`, which example of a packed row a token belongs to.
          enable_dropout: False switches dropout off.
          token_types: `[B T]`, for the embedder of token types.
          valid: `[B T]`, which tokens are real, if not all but 0.
        """
        if self.sow_intermediates:
            self.sow("intermediates", "input_tokens_ids", inputs)
        more = {} if token_types is None else {"token_types": token_types}
        x = self.embed_and_combine_inputs(
            inputs,
            inputs_positions,
            segment_ids=segment_ids,
            enable_dropout=enable_dropout,
            **(more if valid is None else more | {"valid": valid}),
        )
        logit_mask = (inputs > 0 if valid is None else valid)[..., None].astype(self.dtype)
        x = self.encode_from_continuous_inputs(x, encoder_mask, logit_mask, enable_dropout=enable_dropout)
        if self.sow_intermediates:
            self.sow("intermediates", "final_encoder_outputs", x)
        return x


class Decoder(LayerStack, ParameterRemappable):
    """Embeds tokens, runs decoder layers and maps to the vocabulary: `[B T]` ids to `[B T V]` logits.

    Attributes:
      layer_factory, layer_norm_factory, num_layers, dtype, layer_remat, scan_layers, spmd_annotations,
      shared_relative_position_bias_factory, token_embedder_factory, shared_token_embedder, position_embedder_factory,
      sow_intermediates, scan_axis, capture_gradients: as in `Encoder`.
      dropout_factory: makes the dropouts after embedding and after the final norm.
      output_logits_factory: makes the projection to logits; None: attend to the token table, divided by √D. A module
        that names the keyword `attend` is given the token table's.
      embedding_transform_factory, token_type_embedder_factory, number_tokens: as in `Encoder`.
    """

    layer_factory: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]]
    dropout_factory: Callable[[], nn.Module]
    layer_norm_factory: Callable[[], nn.Module] | None
    num_layers: int
    dtype: DType = jnp.float32
    layer_remat: LayerRemat | str = LayerRemat.LEGACY
    scan_layers: bool = False
    spmd_annotations: Any = None
    shared_relative_position_bias_factory: Callable[[], nn.Module] | None = None
    output_logits_factory: Callable[[], nn.Module] | None = None
    token_embedder_factory: Callable[[], nn.Module] | None = None
    shared_token_embedder: embedding.Embedder | None = None
    position_embedder_factory: Callable[[], nn.Module] | None = None
    sow_intermediates: bool = False
    scan_axis: int = 1
    capture_gradients: bool = False
    embedding_transform_factory: Callable[[], nn.Module] | None = None
    token_type_embedder_factory: Callable[[], nn.Module] | None = None
    number_tokens: Callable[[Array, Array], Array] | None = None

    _scan_name = "decoder"

    def setup(self) -> None:
        self._setup_common()
        self.input_dropout = self.dropout_factory()
        self._setup_layer_sequence()
        self.decoder_norm = None if self.layer_norm_factory is None else self.layer_norm_factory()
        self.output_dropout = self.dropout_factory()
        self.setup_output_logits()

    def setup_output_logits(self) -> None:
        """Sets `self.logits_dense`; may be overridden."""
        self.logits_dense = None if self.output_logits_factory is None else self.output_logits_factory()

    def _setup_layer_sequence(self) -> None:
        """Sets up the layers; may be overridden."""
        self._setup_layers(self._construct_scanned_decoder)

    def _construct_scanned_decoder(
        self, lyrf: Callable[[], nn.Module], num_layers: int, num_broadcast_args: int = 10
    ) -> nn.Module:
        """The module that stands for all layers of a scanned stack; may be overridden.

        Args:
          lyrf: makes one layer.
          num_layers: how many layers are scanned.
          num_broadcast_args: how many arguments all layers share; arguments are told apart by name here.

        Returns:
          A layer of `lyrf`, which the stack then scans; or a module of another kind that is called as a layer is, runs
          them all, and returns `(output, None)`, such as `transforms.factory_scan(lyrf, ...)()`.
        """
        del num_layers, num_broadcast_args
        return lyrf()

    def embed_and_combine_inputs(
        self,
        decoder_input_tokens: Num[Array, "B T"],
        decoder_positions: Array | None = None,
        *,
        segment_ids: Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        token_types: Array | None = None,
        valid: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeds the tokens, their positions and types, drops out, casts to `dtype`."""
        more = {"segment_ids": segment_ids, "token_types": token_types, "valid": valid}
        x = self._embed(decoder_input_tokens, decoder_positions, "decoder_input_tokens", decode=decode, **more)
        return self.input_dropout(x, deterministic=not enable_dropout).astype(self.dtype)

    def decode_from_continuous_inputs(
        self,
        embedded_inputs: Float[Array, "B T D"],
        encoder_outputs: Float[Array, "Benc S Denc"] | None,
        decoder_positions: Array | None = None,
        decoder_mask: Mask | Array | None = None,
        encoder_decoder_mask: Mask | Array | None = None,
        logit_mask: Float[Array, "B T 1"] | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
        step: Step | None = None,
    ) -> Float[Array, "B T V"]:
        """The layers, the final norm and the logits on embedded inputs."""
        del decoder_positions  # the embedder has read them; kept for callers who pass them by position
        if encoder_outputs is not None and encoder_outputs.ndim != 3:
            raise ShapeError(
                f"encoder_outputs has shape {encoder_outputs.shape}; expected rank 3, [batch, length, width]."
            )
        known = step or Step.from_keywords(decode, prefill, prefill_lengths)
        bias = self._shared_bias(embedded_inputs, bidirectional=False, step=known, max_decode_length=max_decode_length)
        arrays = {
            "decoder_mask": decoder_mask,
            "encoder_decoder_mask": encoder_decoder_mask,
            "logit_mask": logit_mask,
            "prefill_lengths": prefill_lengths,
            "position_bias": bias,
            "step": step,
        }
        statics = {
            "enable_dropout": enable_dropout,
            "decode": decode,
            "max_decode_length": max_decode_length,
            "prefill": prefill,
        }
        x = self._run(embedded_inputs, (encoder_outputs,), arrays, statics)
        x = x if self.decoder_norm is None else call_part(self.decoder_norm, x, step=known)
        x = self.output_dropout(x, deterministic=not enable_dropout)
        if logit_mask is not None:
            x = logit_mask * x
        if self.sow_intermediates:
            self.sow("intermediates", "pre_logits_layer", x)
        logits = self._logits(x)
        if self.sow_intermediates:
            self.sow("intermediates", "logits", logits)
        return logits

    @nn.nowrap
    def _continue_behind(self, lengths: Array) -> None:
        """Tells embedders that count positions by themselves where a prompt ends."""
        for embedder in self.embedder.embedders.values():
            if isinstance(embedder, CountedPositions):
                embedder.continue_behind(lengths)

    @nn.nowrap
    def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        if self.logits_dense is not None:
            attend = getattr(self.embedder.embedders["token_ids"], "attend", None)
            return call_part(self.logits_dense, x, attend=attend)
        table: Any = self.embedder.embedders["token_ids"]
        logits = table.attend(x)
        return logits / jnp.sqrt(jnp.float32(x.shape[-1])).astype(logits.dtype)

    def __call__(
        self,
        encoder_outputs: Float[Array, "Benc S Denc"] | None,
        decoder_input_tokens: Num[Array, "B T"],
        decoder_positions: Array | None = None,
        decoder_mask: Mask | Array | None = None,
        encoder_decoder_mask: Mask | Array | None = None,
        *,
        segment_ids: Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Array | None = None,
        step: Step | None = None,
        token_types: Array | None = None,
        valid: Array | None = None,
        **kwargs: Any,
    ) -> Float[Array, "B T V"]:
        """Logits for token ids `[B T]`; 0 is padding.

        Args:
          encoder_outputs: what cross-attention reads; None in a decoder-only model.
          decoder_input_tokens: token ids.
          decoder_positions: `[B T]`, positions for the position embedder; 0, 1, ... when None.
          decoder_mask: who may see whom.
          encoder_decoder_mask: which encoder positions may be seen.
          segment_ids: `[B T]`, which example of a packed row a token belongs to.
          enable_dropout: False switches dropout off.
          decode, max_decode_length, prefill, prefill_lengths: T5X's protocol; see `Step`.
          step: where the tokens stand and which cache slots they take; excludes the four before.
          token_types: `[B T]`, for the embedder of token types.
          valid: `[B T]`, which tokens are real, if not all but 0. Unused with a `step`, which knows.
          **kwargs: passed to `decode_from_continuous_inputs`, for subclasses.
        """
        if step is not None and step.positions is not None:
            decoder_positions = step.positions if decoder_positions is None else decoder_positions
        more = {} if token_types is None else {"token_types": token_types}
        x = self.embed_and_combine_inputs(
            decoder_input_tokens,
            decoder_positions,
            segment_ids=segment_ids,
            enable_dropout=enable_dropout,
            decode=decode,
            **(more if valid is None else more | {"valid": valid}),
        )
        if prefill and prefill_lengths is None and decoder_mask is not None:
            prefill_lengths = count_first_row(decoder_mask, decoder_input_tokens.shape[-1])
        if prefill and prefill_lengths is not None:
            self._continue_behind(prefill_lengths)
        logit_mask = None
        if step is None:
            known = valid if valid is None else valid[..., None].astype(x.dtype)
            logit_mask = get_decoder_logit_mask(decoder_input_tokens, x.dtype) if known is None else known
        return self.decode_from_continuous_inputs(
            x,
            encoder_outputs,
            decoder_positions,
            decoder_mask,
            encoder_decoder_mask,
            logit_mask,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
            prefill=prefill,
            prefill_lengths=prefill_lengths,
            **({} if step is None else {"step": step}),
            **kwargs,
        )
