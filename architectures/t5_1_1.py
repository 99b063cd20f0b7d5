"""T5 1.1, built from parts, top to bottom. The same model as `gin/t5_1_1/`.

    tokens -> embed -> 12 x [attend, MLP] -> norm                                     encoder
    tokens -> embed -> 12 x [attend, attend to the encoder, MLP] -> norm -> logits    decoder

Five things tell it from other transformers: norms come before each branch and only scale; no dense layer has a bias;
the MLP is gated (GELU(x·W0) ⊙ x·W1)·W2; positions are a learned bias on the attention logits, by distance and head,
shared by all layers of a stack; and attention logits are not divided by √head_dim, which its initializers undo.

    python architectures/t5_1_1.py     # prints the sizes, and takes one training step with a tiny one

Source: Raffel et al. 2020, https://arxiv.org/abs/1910.10683; Shazeer 2020, https://arxiv.org/abs/2002.05202.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, Encoder, EncoderDecoder, EncoderLayer
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.components.embedding import Embed
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.relative_position_biases import RelativePositionBiases
from gallery import Page, cross_entropy, show, text


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int  # of the encoder, and again of the decoder
    heads: int
    head_dim: int
    width: int
    mlp_width: int
    vocabulary: int = 32128


SIZES = {
    "tiny": Size(layers=2, heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "small": Size(layers=8, heads=6, head_dim=64, width=512, mlp_width=1024),
    "base": Size(layers=12, heads=12, head_dim=64, width=768, mlp_width=2048),
    "large": Size(layers=24, heads=16, head_dim=64, width=1024, mlp_width=2816),
    "xl": Size(layers=24, heads=32, head_dim=64, width=2048, mlp_width=5120),
    "xxl": Size(layers=24, heads=64, head_dim=64, width=4096, mlp_width=10240),
}


Part = Callable[..., nn.Module]


def t5_1_1(
    size: Size,
    dropout_rate: float = 0.0,
    dtype: str = "bfloat16",
    *,
    decoder_layers: int | None = None,
    activations: tuple[str, ...] = ("gelu", "linear"),
    other_mlps: tuple[Part, ...] = (),
    encoder_attention: Part = MultiHeadDotProductAttention,
    encoder_bias: Part | None = RelativePositionBiases,
    decoder_bias: Part | None = RelativePositionBiases,
    layer_bias: Part | None = None,
    head: Part | None = DenseGeneral,
) -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32.

    Args:
      size: its numbers.
      dropout_rate: everywhere.
      dtype: of the computation.
      decoder_layers: as many as the encoder has when None.
      activations: of the MLP, whose branches are multiplied.
      other_mlps: make the MLPs of the layers behind one with that MLP, in turn.
      encoder_attention: makes the attention of the encoder's layers.
      encoder_bias: makes the position bias that the encoder's layers share; None: they share none.
      decoder_bias: the same for the decoder.
      layer_bias: makes the position bias of each layer of both; None: they have none of their own.
      head: makes the output projection; None: the token table is, of states divided by √D.
    """
    scaling = nn.initializers.variance_scaling
    bias_init = nn.initializers.normal(1e-6)  # never used: no layer has a bias

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate, broadcast_dims=(-2,))  # one mask for all positions

    def norm():
        return T5LayerNorm(dtype=dtype)

    def attention(kind: Part = MultiHeadDotProductAttention):
        return kind(
            num_heads=size.heads,
            head_dim=size.head_dim,
            use_bias=False,
            dropout_rate=dropout_rate,
            broadcast_dropout=True,
            kernel_init=scaling(1.0, "fan_in", "normal"),
            bias_init=bias_init,
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=activations,
            use_bias=False,
            intermediate_dropout_rate=dropout_rate,
            final_dropout_rate=0,
            kernel_init=scaling(1.0, "fan_in", "truncated_normal"),
            bias_init=bias_init,
            dtype=dtype,
        )

    def position_bias(kind):
        """What makes that kind of bias, or None."""
        return kind and functools.partial(
            kind,
            num_heads=size.heads,
            num_buckets=32,
            max_distance=128,
            embedding_init=scaling(1.0, "fan_avg", "uniform"),
            dtype=dtype,
        )

    def embedder():
        return Embed(
            num_embeddings=size.vocabulary,
            features=size.width,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=nn.initializers.normal(1.0),
            dtype=dtype,
            name="token_embedder",
        )

    logits = head and functools.partial(
        head,
        features=size.vocabulary,
        use_bias=False,
        kernel_init=scaling(1.0, "fan_in", "truncated_normal"),
        bias_init=bias_init,
        kernel_axis_names=("embed", "vocab"),
        dtype="float32",
    )

    # The layers.

    mlps = (mlp, *other_mlps)

    def encoder_layer(make_mlp, shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(encoder_attention),
            mlp=make_mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            relative_position_bias_factory=position_bias(layer_bias),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder_layer(make_mlp, shared_relative_position_bias):
        return DecoderLayer(
            self_attention=attention(),
            encoder_decoder_attention=attention(),
            mlp=make_mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            relative_position_bias_factory=position_bias(layer_bias),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    # The stacks.

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=[functools.partial(encoder_layer, make) for make in mlps],
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias_factory=position_bias(encoder_bias),
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=[functools.partial(decoder_layer, make) for make in mlps],
            num_layers=size.layers if decoder_layers is None else decoder_layers,
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias_factory=position_bias(decoder_bias),
            shared_token_embedder=shared_token_embedder,
            output_logits_factory=logits,
            dtype=dtype,
        )

    return EncoderDecoder(
        encoder_factory=encoder,
        decoder_factory=decoder,
        shared_token_embedder_factory=embedder,
        dtype=dtype,
    )


def example(size: Size) -> tuple[tuple, dict]:
    """Rows to read, what the decoder has read when it predicts each target (0 comes first), and the targets."""
    targets = text(size.vocabulary)  # [B T]
    return (text(size.vocabulary, seed=1), jnp.pad(targets[:, :-1], ((0, 0), (1, 0))), targets), {}


def loss(logits: jax.Array) -> jax.Array:
    """Of the logits `[B T V]` for the example."""
    return cross_entropy(logits, text(logits.shape[-1]))


PAGE = Page("t5_1_1", SIZES, t5_1_1, example, loss)

if __name__ == "__main__":
    show(PAGE)
