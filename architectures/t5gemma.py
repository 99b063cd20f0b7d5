"""T5Gemma, built from parts, top to bottom. The same model as `gin/t5gemma/`.

    tokens -> embed -> 26 x [norm, attend, norm; norm, MLP, norm] -> norm                                    encoder
    tokens -> embed -> 26 x [the same, with norm, attend to the encoder, norm in between] -> norm -> logits  decoder

It is Gemma 2 twice, where the decoder also attends to the encoder, without positions. What tells it from T5: norms
stand before and behind each branch and store their scale minus one; positions rotate queries and keys; every other
layer sees a window only; there are fewer heads of keys than of queries; scores and logits are bounded; each stack has a
size and a token table of its own, with which the decoder also writes.

    python architectures/t5gemma.py     # prints the sizes, and takes one training step with a tiny one

Source: Zhang et al. 2025, https://arxiv.org/abs/2504.06225; Gemma Team 2024, https://arxiv.org/abs/2408.00118.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.arrangements import SandwichDecoderLayer, SandwichEncoderLayer
from flaxformer.architectures.t5.t5_architecture import Decoder, Encoder, EncoderDecoder
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.masks import Window
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.logits import TiedLogits
from flaxformer.components.positions.rotary import Rotary
from gallery import Page, cross_entropy, show, text


@dataclasses.dataclass(frozen=True)
class Stack:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    mlp_width: int

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5


@dataclasses.dataclass(frozen=True)
class Size:
    encoder: Stack
    decoder: Stack
    vocabulary: int = 256000


TINY = Stack(layers=2, heads=4, kv_heads=2, head_dim=8, width=64, mlp_width=64)
GEMMA_2B = Stack(layers=26, heads=8, kv_heads=4, head_dim=256, width=2304, mlp_width=9216)
GEMMA_9B = Stack(layers=42, heads=16, kv_heads=8, head_dim=256, width=3584, mlp_width=14336)
SIZES = {
    "tiny": Size(TINY, TINY, vocabulary=512),
    "2B-2B": Size(GEMMA_2B, GEMMA_2B),
    "9B-2B": Size(GEMMA_9B, GEMMA_2B),
    "9B-9B": Size(GEMMA_9B, GEMMA_9B),
}
ENCODER_WINDOW = Window(left=4096, right=4096)
DECODER_WINDOW = Window(left=4095)  # the token itself, and those before it
START = 2


def t5gemma(size: Size, dropout_rate: float = 0.0, dtype: str = "float32") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    kernel_init = nn.initializers.normal(0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def norm():
        return T5LayerNorm(epsilon=1e-6, center_scale_at_zero=True, dtype=dtype)

    def attention(stack, positions, reach=None):
        return MultiHeadDotProductAttention(
            num_heads=stack.heads,
            num_kv_heads=stack.kv_heads,
            head_dim=stack.head_dim,
            use_bias=False,
            attention_fn=Attend(scale=0.0625, softcap=50.0),  # 1/√256
            positions=positions,
            reach=reach,
            dropout_rate=dropout_rate,
            broadcast_dropout=False,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def mlp(stack):
        return MlpBlock(
            intermediate_dim=stack.mlp_width,
            activations=("gelu", "linear"),
            use_bias=False,
            intermediate_dropout_rate=dropout_rate,
            final_dropout_rate=0.0,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def token_embedder(stack):
        return Embed(
            num_embeddings=size.vocabulary,
            features=stack.width,
            scale=stack.embedding_scale,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=kernel_init,
            dtype=dtype,
        )

    # The layers: one with a window, one without, in turn.

    def encoder_layer(reach):
        return lambda shared_relative_position_bias: SandwichEncoderLayer(
            attention=attention(size.encoder, Rotary(), reach),
            mlp=mlp(size.encoder),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder_layer(reach):
        return lambda shared_relative_position_bias: SandwichDecoderLayer(
            self_attention=attention(size.decoder, Rotary(), reach),
            encoder_decoder_attention=attention(size.decoder, positions=None),
            mlp=mlp(size.decoder),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    # The stacks.

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=(encoder_layer(ENCODER_WINDOW), encoder_layer(None)),
            num_layers=size.encoder.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=dropout,
            layer_norm_factory=norm,
            token_embedder_factory=lambda: token_embedder(size.encoder),
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=(decoder_layer(DECODER_WINDOW), decoder_layer(None)),
            num_layers=size.decoder.layers,
            dropout_factory=dropout,
            layer_norm_factory=norm,
            token_embedder_factory=lambda: token_embedder(size.decoder),
            output_logits_factory=lambda: TiedLogits(cap=30.0),
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return EncoderDecoder(encoder_factory=encoder, decoder_factory=decoder)


def example(size: Size) -> tuple[tuple, dict]:
    """Rows to read, what the decoder has read when it predicts each target (a start comes first), and the targets."""
    targets = text(size.vocabulary)  # [B T]
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    return (text(size.vocabulary, seed=1), shifted, targets), {}


def loss(logits: jax.Array) -> jax.Array:
    """Of the logits `[B T V]` for the example."""
    return cross_entropy(logits, text(logits.shape[-1]))


PAGE = Page("t5gemma", SIZES, t5gemma, example, loss)

if __name__ == "__main__":
    show(PAGE)
