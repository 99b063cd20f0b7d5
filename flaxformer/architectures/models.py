"""Whole models: `EncoderDecoder`, `DecoderOnly` and `EncoderOnly`.

They turn tokens into masks (`padding_id`, 0, is padding unless a call says which tokens are `valid`; `segment_ids` keep
packed examples apart) and the public keywords into one `Step`; the stacks do the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from flaxformer.architectures.common.param_remapping import ParameterRemappable
from flaxformer.architectures.example_inputs import stack_input
from flaxformer.architectures.token_masks import (
    decoder_mask,
    encoder_mask,
    known_tokens,
    same_segment,
    step_mask,
)
from flaxformer.components.attention.masks import Mask, Padding, combine
from flaxformer.components.calling import accepts
from flaxformer.components.embedding import Embedder
from flaxformer.step import Step
from flaxformer.types import Array, DType


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None: stacks of other makers need not know the rest."""
    return {name: value for name, value in options.items() if value is not None}


def _make_stack(factory: Callable[..., nn.Module], shared_token_embedder: nn.Module | None, annotations: Any):
    extra = {"spmd_annotations": annotations} if accepts(factory, "spmd_annotations") and annotations else {}
    return factory(shared_token_embedder=shared_token_embedder, **extra)


class EncoderDecoder(nn.Module, ParameterRemappable):
    """An encoder, a decoder that attends to it, and possibly one token table for both.

    Attributes:
      encoder_factory: makes the encoder; called with `shared_token_embedder=`.
      decoder_factory: makes the decoder, likewise.
      dtype: accepted for old configurations; masks are bool.
      scan_layers: tells drivers that the layers of both stacks are scanned, and caches stacked.
      spmd_annotations: accepted for old configurations and handed down.
      shared_token_embedder_factory: makes the shared token table; None: each stack makes its own.
      padding_id: the id that is padding where a call does not say which tokens are valid. None: no id is.
      flag_tokens: from the encoder's token ids to flags `[B S]`, the global ones where a call names none. None: none.
    """

    encoder_factory: Callable[..., nn.Module]
    decoder_factory: Callable[..., nn.Module]
    dtype: DType = jnp.float32
    scan_layers: bool = False
    spmd_annotations: Any = None
    shared_token_embedder_factory: Callable[[], nn.Module | None] | None = None
    padding_id: int | None = 0
    flag_tokens: Callable[[Array], Array] | None = None

    def setup(self) -> None:
        self.token_embedder = (
            None if self.shared_token_embedder_factory is None else self.shared_token_embedder_factory()
        )
        notes = self.spmd_annotations or {}
        self.encoder = _make_stack(self.encoder_factory, self.token_embedder, notes.get("encoder"))
        self.decoder = _make_stack(self.decoder_factory, self.token_embedder, notes.get("decoder"))

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of what a call takes, each with `length` tokens; see `stack_input`."""
        targets = stack_input(self.decoder_factory, length)
        return {
            "encoder_input_tokens": stack_input(self.encoder_factory, length),
            "decoder_input_tokens": targets,
            "decoder_target_tokens": targets,
        }

    @property
    def encoder_embedder(self) -> Embedder:
        """The encoder's embedder."""
        return self.encoder.embedder

    @property
    def decoder_embedder(self) -> Embedder:
        """The decoder's embedder."""
        return self.decoder.embedder

    def encode(
        self,
        encoder_input_tokens: Num[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        encoder_positions: Int[Array, "B S"] | None = None,
        *,
        enable_dropout: bool = True,
        encoder_valid: Bool[Array, "B S"] | None = None,
        global_tokens: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """The encoder's output for token ids.

        Args:
          encoder_input_tokens: what the encoder reads.
          encoder_segment_ids: which example of a packed row a token belongs to.
          encoder_positions: positions for the position embedder.
          enable_dropout: False switches dropout off.
          encoder_valid: which tokens are real, if not all but `padding_id`.
          global_tokens: which tokens see everything and are seen by all, where layers see only near ones otherwise.
        """
        if global_tokens is None and self.flag_tokens is not None:
            global_tokens = self.flag_tokens(encoder_input_tokens)
        valid = known_tokens(encoder_valid, encoder_input_tokens, self.padding_id)
        mask = encoder_mask(encoder_input_tokens, encoder_segment_ids, valid, global_tokens)
        return self.encoder(
            encoder_input_tokens,
            encoder_positions,
            mask,
            segment_ids=encoder_segment_ids,
            enable_dropout=enable_dropout,
            **_given(valid=valid),
        )

    def decode(
        self,
        encoded: Float[Array, "B S D"],
        encoder_input_tokens: Num[Array, "B S"],
        decoder_input_tokens: Num[Array, "R T"],
        decoder_target_tokens: Num[Array, "R T"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "R T"] | None = None,
        decoder_positions: Int[Array, "R T"] | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Int[Array, " R"] | None = None,
        step: Step | None = None,
        encoder_valid: Bool[Array, "B S"] | None = None,
        decoder_valid: Bool[Array, "R T"] | None = None,
    ) -> Float[Array, "R T V"]:
        """Logits for decoder inputs, given the encoder's output.

        Args:
          encoded: the encoder's output.
          encoder_input_tokens: its token ids, for the padding.
          decoder_input_tokens: what the decoder reads. With a `step`, R may be a multiple of B: R/B rows, such as the
            beams of one item, share an encoded sequence.
          decoder_target_tokens: what it is to predict; only says what is padding. Unused when decoding.
          encoder_segment_ids, decoder_segment_ids: which example of a packed row a token belongs to.
          decoder_positions: positions for the position embedder.
          enable_dropout: False switches dropout off.
          decode, max_decode_length, prefill, prefill_lengths: T5X's protocol; see `Step`.
          step: where the tokens stand and which cache slots they take; excludes the four before.
          encoder_valid: which encoder tokens are real, if not all but `padding_id`.
          decoder_valid: the same for the decoder; then no targets are needed. Unused when decoding.

        Raises:
          ValueError: for segment ids while decoding or of the encoder alone, or targets missing while not decoding.
        """
        if encoder_segment_ids is not None and decoder_segment_ids is None:
            raise ValueError(
                "encoder_segment_ids came without decoder_segment_ids; expected both, which say together what a packed "
                "target may see of the encoder."
            )
        cached = decode or step is not None
        if cached and (encoder_segment_ids is not None or decoder_segment_ids is not None):
            raise ValueError("segment ids were given while decoding; expected none: decode one example per row.")
        known = known_tokens(encoder_valid, encoder_input_tokens, self.padding_id)
        real = encoder_input_tokens > 0 if known is None else known
        valid = None
        if cached:
            own = None if step is None else step_mask(step)
            cross = Padding(None, real)
        else:
            valid = known_tokens(decoder_valid, decoder_target_tokens, self.padding_id)
            targets = decoder_input_tokens if valid is not None else _require_targets(decoder_target_tokens)
            own = decoder_mask(targets, segment_ids=decoder_segment_ids, valid=valid)
            queries = targets > 0 if valid is None else valid
            cross = combine(Padding(queries, real), same_segment(decoder_segment_ids, encoder_segment_ids))
        return self.decoder(
            encoded,
            decoder_input_tokens,
            decoder_positions,
            own,
            cross,
            segment_ids=decoder_segment_ids,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
            prefill=prefill,
            prefill_lengths=prefill_lengths,
            **_given(step=step, valid=valid),
        )

    def __call__(
        self,
        encoder_input_tokens: Num[Array, "B S"],
        decoder_input_tokens: Num[Array, "B T"],
        decoder_target_tokens: Num[Array, "B T"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        encoder_positions: Int[Array, "B S"] | None = None,
        decoder_positions: Int[Array, "B T"] | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        encoder_valid: Bool[Array, "B S"] | None = None,
        decoder_valid: Bool[Array, "B T"] | None = None,
        global_tokens: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Teacher-forced logits: `encode`, then `decode`; the arguments are theirs."""
        encoded = self.encode(
            encoder_input_tokens,
            encoder_segment_ids,
            encoder_positions,
            enable_dropout=enable_dropout,
            **_given(encoder_valid=encoder_valid, global_tokens=global_tokens),
        )
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
            **_given(encoder_valid=encoder_valid, decoder_valid=decoder_valid),
        )


class DecoderOnly(nn.Module, ParameterRemappable):
    """A causal or prefix language model.

    Attributes:
      decoder_factory: makes the decoder; called with `shared_token_embedder=None`.
      scan_layers: tells drivers that the layers are scanned, and caches stacked.
      dtype: accepted for old configurations; masks are bool.
      padding_id: the id that is padding where a call does not say which tokens are valid. None: no id is.
    """

    decoder_factory: Callable[..., nn.Module]
    scan_layers: bool = False
    dtype: DType = jnp.float32
    padding_id: int | None = 0

    def setup(self) -> None:
        self.decoder = self.decoder_factory(shared_token_embedder=None)

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of what a call takes, each with `length` tokens; see `stack_input`."""
        return dict.fromkeys(
            ("decoder_input_tokens", "decoder_target_tokens"), stack_input(self.decoder_factory, length)
        )

    def __call__(
        self,
        decoder_input_tokens: Num[Array, "B T"],
        decoder_target_tokens: Num[Array, "B T"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B T"] | None = None,
        decoder_causal_attention: Int[Array, "B T"] | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: Int[Array, " B"] | None = None,
        step: Step | None = None,
        decoder_attention_mask: Mask | Array | None = None,
        decoder_valid: Bool[Array, "B T"] | None = None,
        **kwargs: Any,
    ) -> Float[Array, "B T V"]:
        """Logits for token ids.

        Args:
          decoder_input_tokens: what the model reads.
          decoder_target_tokens: what it is to predict; only says what is padding. Unused when decoding.
          decoder_segment_ids: which example of a packed row a token belongs to.
          decoder_positions: positions for the position embedder.
          decoder_causal_attention: 1 on the prefix, whose positions all see each other.
          enable_dropout: False switches dropout off.
          decode, max_decode_length, prefill, prefill_lengths: T5X's protocol; see `Step`.
          step: where the tokens stand and which cache slots they take; excludes the four before.
          decoder_attention_mask: a mask to use instead of the one made from the targets.
          decoder_valid: which tokens are real, if not all but `padding_id`; then no targets are needed. Unused when
            decoding.
          **kwargs: passed to the decoder.
        """
        if decode and prefill:
            raise ValueError("decode=True and prefill=True were given together; expected at most one.")
        if decoder_attention_mask is not None and decoder_causal_attention is not None:
            raise ValueError(
                "decoder_attention_mask and decoder_causal_attention were both given; expected at most one, "
                "since each says who may see whom."
            )
        valid = (
            None if step is not None or decode else known_tokens(decoder_valid, decoder_target_tokens, self.padding_id)
        )
        if step is not None:
            mask = step_mask(step, decoder_causal_attention)
        elif decode:
            mask = None
        elif decoder_attention_mask is not None:
            mask = decoder_attention_mask
        else:
            targets = decoder_input_tokens if valid is not None else _require_targets(decoder_target_tokens)
            mask = decoder_mask(targets, decoder_causal_attention, decoder_segment_ids, valid)
        return self.decoder(
            None,
            decoder_input_tokens,
            decoder_positions,
            mask,
            None,
            segment_ids=decoder_segment_ids,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
            prefill=prefill,
            prefill_lengths=prefill_lengths,
            **_given(step=step, valid=valid),
            **kwargs,
        )


class EncoderOnly(nn.Module, ParameterRemappable):
    """An encoder by itself, for representations and classification.

    Attributes:
      encoder_factory: makes the encoder; called with `shared_token_embedder=None`.
      scan_layers: tells others that the layers are scanned.
      padding_id: the id that is padding where a call does not say which tokens are valid. None: no id is.
    """

    encoder_factory: Callable[..., nn.Module]
    scan_layers: bool = False
    padding_id: int | None = 0

    def setup(self) -> None:
        self.encoder = self.encoder_factory(shared_token_embedder=None)

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """One example of what a call takes, `length` tokens if it is tokens; see `stack_input`."""
        return {"encoder_input_tokens": stack_input(self.encoder_factory, length)}

    def __call__(
        self,
        encoder_input_tokens: Num[Array, "B T"],
        encoder_segment_ids: Int[Array, "B T"] | None = None,
        encoder_positions: Int[Array, "B T"] | None = None,
        *,
        enable_dropout: bool = True,
        encoder_valid: Bool[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        global_tokens: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states `[B T D]` for token ids.

        Args:
          encoder_input_tokens: what the model reads.
          encoder_segment_ids: which example of a packed row a token belongs to.
          encoder_positions: positions for the position embedder.
          enable_dropout: False switches dropout off.
          encoder_valid: which tokens are real, if not all but `padding_id`.
          token_types: for the embedder of token types.
          global_tokens: which tokens see everything and are seen by all, where layers see only near ones otherwise.
        """
        valid = known_tokens(encoder_valid, encoder_input_tokens, self.padding_id)
        mask = encoder_mask(encoder_input_tokens, encoder_segment_ids, valid, global_tokens)
        return self.encoder(
            encoder_input_tokens,
            encoder_positions,
            mask,
            segment_ids=encoder_segment_ids,
            enable_dropout=enable_dropout,
            **_given(valid=valid, token_types=token_types),
        )


def _require_targets(targets: Array | None) -> Array:
    if targets is None:
        raise ValueError(
            "decoder_target_tokens is None; expected [batch, length] outside decoding: they say what is padding."
        )
    return targets
