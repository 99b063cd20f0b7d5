"""BART, built from parts, top to bottom. The same model as `gin/bart/`.

    tokens, positions -> embed -> norm -> 6 x [attend to all, norm, MLP, norm]                          encoder
    tokens, positions -> embed -> norm -> 6 x [attend, norm, attend to the encoder, norm, MLP, norm]    decoder
    -> logits by the token table, plus a bias per token

What tells it from T5: norms come behind each residual sum, centre, and have a bias; the sum of the embeddings has one
too, and the stacks end in none; positions are learned vectors, with two unused rows in front; dense layers have biases.

    python architectures/bart.py     # prints the sizes, and takes one training step with a tiny one

Source: Lewis et al. 2019, https://arxiv.org/abs/1910.13461.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.t5.t5_architecture import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderDecoder,
    EncoderLayer,
    PostNorm,
    PreNorm,
)
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TiedLogits
from gallery import Page, cross_entropy, show, text


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int  # of the encoder, and again of the decoder
    heads: int
    width: int
    mlp_width: int
    vocabulary: int = 50265
    positions: int = 1024


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "base": Size(layers=6, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=12, heads=16, width=1024, mlp_width=4096),
}
PADDING, END = 1, 2


KERNEL_INIT = nn.initializers.normal(0.02)
Part = Callable[..., nn.Module]

# Scores are divided by the square root of a head's width.
ATTENTION = functools.partial(MultiHeadDotProductAttention, rescale_logits=True)


def learned(size: Size) -> PositionEmbed:
    """BART's positions."""
    return PositionEmbed(size.positions, size.width, embedding_init=KERNEL_INIT, offset=2)


def bart(
    size: Size,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    *,
    activation: str = "gelu_exact",
    padding: int = PADDING,
    embedding_scale: float | None = None,
    encoder_positions: Callable[[Size], nn.Module] = learned,
    decoder_positions: Callable[[Size], nn.Module] = learned,
    embedding_norm: Part | None = LayerNorm,
    encoder_attention: Part = ATTENTION,
    residual: Callable[[], PostNorm | PreNorm] = PostNorm,
    final_norm: Part | None = None,
) -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32.

    Args:
      size: its numbers.
      dropout_rate: on embeddings and branches.
      dtype: of the computation.
      activation: of the MLP.
      padding: the id that is none of the text's.
      embedding_scale: a factor on the tokens' embeddings.
      encoder_positions: makes what embeds the encoder's positions.
      decoder_positions: the same for the decoder.
      embedding_norm: makes the norm of the sum of the embeddings; None: there is none.
      encoder_attention: makes the attention of the encoder's layers.
      residual: says where the norms of a layer stand.
      final_norm: makes the norm behind each stack; None: there is none.
    """

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def norm(kind: Part = LayerNorm):
        return kind(epsilon=1e-5, dtype=dtype)

    def attention(kind: Part = ATTENTION):
        return kind(
            num_heads=size.heads,
            use_bias=True,
            dropout_rate=0.0,
            broadcast_dropout=False,
            kernel_init=KERNEL_INIT,
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=(activation,),
            use_bias=True,
            intermediate_dropout_rate=0.0,
            final_dropout_rate=0.0,
            kernel_init=KERNEL_INIT,
            dtype=dtype,
        )

    def token_embedder():
        return Embed(
            num_embeddings=size.vocabulary,
            features=size.width,
            scale=embedding_scale,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=KERNEL_INIT,
            dtype=dtype,
        )

    def logits():
        return TiedLogits(use_bias=True, num_embeddings=size.vocabulary)

    # The layers, the stacks, the model.

    def encoder_layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(encoder_attention),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=residual(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder_layer(shared_relative_position_bias):
        return DecoderLayer(
            self_attention=attention(),
            encoder_decoder_attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=residual(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=encoder_layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=final_norm and functools.partial(norm, final_norm),
            position_embedder_factory=functools.partial(encoder_positions, size),
            embedding_transform_factory=embedding_norm and functools.partial(norm, embedding_norm),
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=decoder_layer,
            num_layers=size.layers,
            dropout_factory=dropout,
            layer_norm_factory=final_norm and functools.partial(norm, final_norm),
            position_embedder_factory=functools.partial(decoder_positions, size),
            embedding_transform_factory=embedding_norm and functools.partial(norm, embedding_norm),
            output_logits_factory=logits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return EncoderDecoder(
        encoder_factory=encoder,
        decoder_factory=decoder,
        shared_token_embedder_factory=token_embedder,
        padding_id=padding,
    )


def example(size: Size) -> tuple[tuple, dict]:
    """Rows to read, what the decoder has read when it predicts each target (the end comes first), and the targets."""
    targets = text(size.vocabulary)  # [B T]
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=END)
    return (text(size.vocabulary, seed=1), shifted, targets), {}


def loss(logits: jax.Array) -> jax.Array:
    """Of the logits `[B T V]` for the example."""
    return cross_entropy(logits, text(logits.shape[-1]))


PAGE = Page("bart", SIZES, bart, example, loss)

if __name__ == "__main__":
    show(PAGE)
