"""Sound waves to frames: convolutions shorten a wave, and an encoder reads what they give.

wave [B samples] -> features [B T C] -> projection [B T D] -> + positions -> layers -> hidden [B T D] -> heads
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.architectures.example_inputs import LENGTH
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.activations import resolve_activation
from flaxformer.components.attention.masks import Padding
from flaxformer.components.calling import call_part
from flaxformer.components.strided_convolution import StridedConvolution, WeightNormedConvolution
from flaxformer.errors import ShapeError
from flaxformer.parameters import parameter
from flaxformer.types import Activation, Array, DType, Initializer


class WaveFeatures(nn.Module):
    """Convolutions without padding over a wave, each followed by a norm, if it has one, and an activation.

    Attributes:
      features: channels of each.
      kernel_sizes: of each.
      strides: of each.
      use_bias: adds biases.
      first_norm_factory: makes the norm of the first; None: it has none.
      norm_factory: makes those of the others.
      activation: behind each.
      kernel_init: of the kernels.
      dtype: of the computation.

    Source: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477, section 2.
    """

    features: Sequence[int]
    kernel_sizes: Sequence[int]
    strides: Sequence[int]
    use_bias: bool = False
    first_norm_factory: Callable[[], nn.Module] | None = None
    norm_factory: Callable[[], nn.Module] | None = None
    activation: str | Activation = "gelu_exact"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DType = jnp.float32

    def setup(self) -> None:
        made, sizes = [], zip(self.features, self.kernel_sizes, self.strides, strict=True)
        for width, kernel_size, stride in sizes:
            options: dict[str, Any] = {"use_bias": self.use_bias, "kernel_init": self.kernel_init, "dtype": self.dtype}
            made.append(StridedConvolution(width, kernel_size, stride, **options))
        self.convolution = made
        factories = [self.first_norm_factory, *[self.norm_factory] * (len(made) - 1)]
        self.norm = [None if factory is None else factory() for factory in factories]

    @nn.nowrap
    def lengths(self, samples: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """How many frames that many samples give."""
        for kernel_size, stride in zip(self.kernel_sizes, self.strides, strict=True):
            samples = (samples - kernel_size) // stride + 1
        return samples

    @nn.nowrap
    def samples(self, frames: int) -> int:
        """How many samples that many frames need."""
        for kernel_size, stride in zip(reversed(self.kernel_sizes), reversed(self.strides), strict=True):
            frames = (frames - 1) * stride + kernel_size
        return frames

    def __call__(self, wave: Float[Array, "B samples"]) -> Float[Array, "B T C"]:
        """The features of every frame.

        Raises:
          ShapeError: a `ValueError`, for what is no batch of waves.
        """
        if wave.ndim != 2:
            raise ShapeError(f"wave has shape {wave.shape}; expected [batch, samples]. Mix its channels into one.")
        x = wave[..., None]
        for convolution, norm in zip(self.convolution, self.norm, strict=True):
            x = convolution(x)
            x = x if norm is None else call_part(norm, x)
            x = resolve_activation(self.activation)(x)
        return x


class TimeNorm(nn.Module):
    """Normalises every channel over the length: `(x - mean_t x) / sqrt(var_t x + epsilon) · scale + bias`, in float32.

    Padding counts, so that a row's result depends on how far it is padded.

    Attributes:
      epsilon: added inside the square root.
      dtype: of the output.

    Source: Wu and He 2018, "Group Normalization", arXiv:1803.08494, with a group for each channel.
    """

    epsilon: float = 1e-5
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Normalises `x`."""
        x = jnp.asarray(x, jnp.float32)
        shape, axes = x.shape[-1:], ("embed",)
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, axes=axes)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape, axes=axes)
        centred = x - jnp.mean(x, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class ConvolvedPositions(nn.Module):
    """Tells frames where they stand by their neighbours: `x + activation(convolution x)`. Stands for a token table.

    Attributes:
      kernel_size: how many frames each one sees.
      groups: of channels, which do not mix.
      activation: behind the convolution.
      kernel_init: of the kernel.
      dtype: of the computation.

    Source: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477, section 2; Mohamed et al. 2019, arXiv:1904.11660.
    """

    kernel_size: int
    groups: int
    activation: str | Activation = "gelu_exact"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DType = jnp.float32

    rank = 3  # of what it embeds

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`x` with its positions."""
        convolution = WeightNormedConvolution(
            x.shape[-1],
            self.kernel_size,
            padding=(self.kernel_size // 2, (self.kernel_size - 1) // 2),
            groups=self.groups,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="convolution",
        )
        return x + resolve_activation(self.activation)(convolution(x))


class MaskedFrames(nn.Module):
    """Puts one learned vector where frames are hidden, for pretraining, or as an augmentation.

    Attributes:
      embedding_init: of the vector.

    Source: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477, section 3.1.
    """

    embedding_init: Initializer = nn.initializers.uniform(1.0)

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], hidden: Bool[Array, "B T"] | None) -> Float[Array, "B T D"]:
        """`x`, with the vector where `hidden` says so."""
        vector = parameter(self, "embedding", self.embedding_init, x.shape[-1:], axes=("embed",))
        return x if hidden is None else jnp.where(hidden[..., None], vector.astype(x.dtype), x)


class WaveEncoder(EncoderWithHeads, kw_only=True):
    """An encoder of waves with heads.

    Attributes:
      encoder_factory, head_factories, scan_layers, padding_id: as in `EncoderWithHeads`; the encoder's token embedder
        reads frames, such as `ConvolvedPositions`.
      features_factory: makes the `WaveFeatures`.
      feature_norm_factory: makes the norm of the features.
      projection_factory: makes the layer from their width to the encoder's.
      projection_dropout_factory: makes the dropout behind it.
      masked_factory: makes a `MaskedFrames`; None: frames cannot be hidden.

    Source: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477.
    """

    features_factory: Callable[[], Any]
    feature_norm_factory: Callable[[], nn.Module]
    projection_factory: Callable[[], Any]
    projection_dropout_factory: Callable[[], Any]
    masked_factory: Callable[[], nn.Module] | None = None

    def setup(self) -> None:
        super().setup()
        self.features = self.features_factory()
        self.feature_norm = self.feature_norm_factory()
        self.projection = self.projection_factory()
        self.projection_dropout = self.projection_dropout_factory()
        self.masked = None if self.masked_factory is None else self.masked_factory()

    @nn.nowrap
    def example_inputs(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """A wave of `length` frames, or `LENGTH` when None."""
        samples = self.features_factory().samples(length or LENGTH)
        return {"wave": jax.ShapeDtypeStruct((1, samples), jnp.float32)}

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        wave: Float[Array, "B samples"],
        *,
        valid: Bool[Array, "B samples"] | None = None,
        hidden_frames: Bool[Array, "B T"] | None = None,
        enable_dropout: bool = True,
    ) -> dict[str, Array]:
        """The hidden states, as `hidden`, and every head's output by its name.

        Besides, `features` `[B T C]` are what the convolutions gave, normalised, and `valid` `[B T]` says which frames
        are real.

        Args:
          wave: samples as the model was trained with, padded on the right.
          valid: which samples are real; all of them when None. Frames of others are not seen by any.
          hidden_frames: which frames the model is not to see; see `MaskedFrames`.
          enable_dropout: False switches dropout off.

        Raises:
          ValueError: for hidden frames without a `masked_factory`.
        """
        features = call_part(self.feature_norm, self.features(wave))
        x = self.projection_dropout(self.projection(features), deterministic=not enable_dropout)
        if self.masked is not None:
            x = self.masked(x, hidden_frames)
        elif hidden_frames is not None:
            raise ValueError(
                "hidden_frames were given and masked_factory is None; expected None. Give the model a MaskedFrames, or "
                "leave them out."
            )
        real = jnp.ones(x.shape[:2], bool)
        if valid is not None:
            lengths = self.features.lengths(jnp.sum(jnp.asarray(valid) > 0, axis=-1))
            real = jnp.arange(x.shape[1]) < lengths[:, None]
        x = self.encoder.embed_and_combine_inputs(jnp.where(real[..., None], x, 0), enable_dropout=enable_dropout)
        x = self.encoder.encode_from_continuous_inputs(x, Padding(None, real), enable_dropout=enable_dropout)
        return self._with_heads({"hidden": x, "features": features, "valid": real}, enable_dropout=enable_dropout)
