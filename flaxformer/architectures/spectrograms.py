"""Spectrograms to text: convolutions shorten what the encoder reads, and the decoder writes tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from flaxformer.architectures.models import EncoderDecoder
from flaxformer.components import initializers
from flaxformer.components.activations import resolve_activation
from flaxformer.components.strided_convolution import StridedConvolution
from flaxformer.errors import ShapeError
from flaxformer.parameters import parameter
from flaxformer.types import Activation, Array, DType, Initializer


class SpectrogramEmbed(nn.Module):
    """Embeds the frames of a spectrogram by convolutions, and adds a table of positions.

        [B frames channels] -> activation(convolution) for each stride -> + positions -> [B T D]

    Attributes:
      features: width D.
      length: T, tokens per spectrogram; spectrograms of other lengths are refused.
      channels: of a frame.
      strides: of the convolutions, so that there are T · product(strides) frames.
      kernel_size: of the convolutions.
      activation: behind each.
      kernel_init: of the kernels.
      position_init: of the table.
      dtype: of the computation.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356.
    """

    features: int
    length: int
    channels: int = 80
    strides: Sequence[int] = (1, 2)
    kernel_size: int = 3
    activation: str | Activation = "gelu_exact"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    position_init: Initializer = initializers.sinusoidal()
    dtype: DType = jnp.float32

    rank = 3  # of what it embeds

    @property
    def input_shape(self) -> tuple[int, int]:
        """Frames and channels of a spectrogram."""
        return self.length * math.prod(self.strides), self.channels

    @nn.compact
    def __call__(self, spectrogram: Float[Array, "B frames channels"]) -> Float[Array, "B T D"]:
        """Embeds spectrograms.

        Raises:
          ShapeError: a `ValueError`, for spectrograms of another length, or with other channels.
        """
        if spectrogram.shape[1:] != self.input_shape:
            raise ShapeError(
                f"the spectrogram has shape {spectrogram.shape}; expected [batch, "
                f"{', '.join(map(str, self.input_shape))}]. Pad it with silence or cut it, or move its channels to the "
                "end."
            )
        x, width = spectrogram, self.kernel_size
        for number, stride in enumerate(self.strides):
            convolution = StridedConvolution(
                self.features,
                width,
                stride,
                padding=((width - 1) // 2, width // 2),
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"convolution_{number}",
            )
            x = resolve_activation(self.activation)(convolution(x))
        positions = parameter(
            self, "positions", self.position_init, (self.length, self.features), axes=("abspos_buckets", "embed")
        )
        return x + positions.astype(x.dtype)


class SpectrogramToText(EncoderDecoder):
    """An encoder-decoder whose encoder reads spectrograms. The attributes are those of `EncoderDecoder`.

    The encoder's token embedder is a `SpectrogramEmbed`. Spectrograms `[B frames channels]` stand where
    `EncoderDecoder` takes `encoder_input_tokens`; all of their tokens are real, unless `encoder_valid` `[B T]` says
    otherwise.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356.
    """

    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        encoder_input_tokens: Float[Array, "B frames channels"],
        *args: Any,
        encoder_valid: Bool[Array, "B T"] | None = None,
        **options: Any,
    ) -> Float[Array, "B T D"]:
        """The encoder's output; the other arguments are those of `EncoderDecoder.encode`."""
        length = self.encoder.embedder.embedders["token_ids"].length
        valid = _or_all(encoder_valid, len(encoder_input_tokens), length)
        return super().encode(encoder_input_tokens, *args, encoder_valid=valid, **options)

    def decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        encoded: Float[Array, "B T D"],
        *args: Any,
        encoder_valid: Bool[Array, "B T"] | None = None,
        **options: Any,
    ) -> Float[Array, "R U V"]:
        """Logits; the other arguments are those of `EncoderDecoder.decode`."""
        valid = _or_all(encoder_valid, *encoded.shape[:2])
        return super().decode(encoded, *args, encoder_valid=valid, **options)


def _or_all(valid: Array | None, batch: int, length: int) -> Bool[Array, "B T"]:
    return jnp.ones((batch, length), bool) if valid is None else jnp.asarray(valid) > 0
