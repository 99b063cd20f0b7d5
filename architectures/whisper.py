"""Whisper, built from parts, top to bottom. The same model as `gin/whisper/`.

    spectrogram -> 2 convolutions, which halve it -> + sinusoids -> 6 x [attend to all, MLP] -> norm           encoder
    tokens, positions -> embed -> 6 x [attend, attend to the encoder, MLP] -> norm -> logits by the token table decoder

What tells it from BART: the encoder reads frames of sound; norms come before each branch, and one more behind each
stack; the encoder's positions are sinusoids, the decoder's learned; and keys have no bias.

    python architectures/whisper.py     # prints the sizes, and takes one training step with a tiny one

Source: Radford et al. 2022, https://arxiv.org/abs/2212.04356.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from flaxformer.architectures.spectrograms import SpectrogramEmbed, SpectrogramToText
from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, Encoder, EncoderLayer
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock, dense_with_biases
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TiedLogits
from gallery import Page, cross_entropy, noise, show, text


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int  # of the encoder
    decoder_layers: int
    heads: int
    width: int
    mlp_width: int
    vocabulary: int = 51865
    positions: int = 1500  # of the encoder, half as many as frames
    decoder_positions: int = 448
    channels: int = 80  # of a frame


SIZES = {
    "tiny": Size(2, 2, heads=4, width=32, mlp_width=64, vocabulary=512, positions=12, decoder_positions=16),
    "base": Size(6, 6, heads=8, width=512, mlp_width=2048),
    "small": Size(12, 12, heads=12, width=768, mlp_width=3072),
    "medium": Size(24, 24, heads=16, width=1024, mlp_width=4096),
    "large_v2": Size(32, 32, heads=20, width=1280, mlp_width=5120),
    "large_v3": Size(32, 32, heads=20, width=1280, mlp_width=5120, vocabulary=51866, channels=128),
    "large_v3_turbo": Size(32, 4, heads=20, width=1280, mlp_width=5120, vocabulary=51866, channels=128),
}
BIASED = ("query", "value", "out")


def whisper(size: Size, dropout_rate: float = 0.0, dtype: str = "float32") -> SpectrogramToText:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    kernel_init = nn.initializers.normal(0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def norm():
        return LayerNorm(epsilon=1e-5, dtype=dtype)

    def attention():
        return MultiHeadDotProductAttention(
            num_heads=size.heads,
            use_bias=True,
            rescale_logits=True,  # divided by the square root of a head's width
            dropout_rate=dropout_rate,
            broadcast_dropout=False,
            kernel_init=kernel_init,
            dense_general_factory=functools.partial(dense_with_biases, biased=BIASED),
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=("gelu_exact",),
            use_bias=True,
            intermediate_dropout_rate=dropout_rate,
            final_dropout_rate=0.0,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def frame_embedder():
        return SpectrogramEmbed(
            size.width, length=size.positions, channels=size.channels, kernel_init=kernel_init, dtype=dtype
        )

    def token_embedder():
        return Embed(
            num_embeddings=size.vocabulary,
            features=size.width,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=kernel_init,
            dtype=dtype,
        )

    def position_embedder():
        return PositionEmbed(num_embeddings=size.decoder_positions, features=size.width, embedding_init=kernel_init)

    # The layers, the stacks, the model.

    def encoder_layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder_layer(shared_relative_position_bias):
        return DecoderLayer(
            self_attention=attention(),
            encoder_decoder_attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=encoder_layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=norm,
            token_embedder_factory=frame_embedder,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=decoder_layer,
            num_layers=size.decoder_layers,
            dropout_factory=dropout,
            layer_norm_factory=norm,
            token_embedder_factory=token_embedder,
            position_embedder_factory=position_embedder,
            output_logits_factory=TiedLogits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return SpectrogramToText(encoder_factory=encoder, decoder_factory=decoder, padding_id=None)  # no id is padding


def example(size: Size) -> tuple[tuple, dict]:
    """Two spectrograms, what the decoder has read when it predicts each token, and these tokens."""
    tokens = text(size.vocabulary, 7)  # [B T]
    return (noise(2, 2 * size.positions, size.channels), tokens[:, :-1], tokens[:, 1:]), {}


def loss(logits: jax.Array) -> jax.Array:
    """Of the logits `[B T V]` for the example."""
    return cross_entropy(logits, text(logits.shape[-1], 7)[:, 1:])


PAGE = Page("whisper", SIZES, whisper, example, loss)

if __name__ == "__main__":
    show(PAGE)
