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

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, Encoder, EncoderDecoder, EncoderLayer
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.components.embedding import Embed
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.relative_position_biases import RelativePositionBiases


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


def t5_1_1(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    scaling = nn.initializers.variance_scaling
    bias_init = nn.initializers.normal(1e-6)  # never used: no layer has a bias

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate, broadcast_dims=(-2,))  # one mask for all positions

    def norm():
        return T5LayerNorm(dtype=dtype)

    def attention():
        return MultiHeadDotProductAttention(
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
            activations=("gelu", "linear"),
            use_bias=False,
            intermediate_dropout_rate=dropout_rate,
            final_dropout_rate=0,
            kernel_init=scaling(1.0, "fan_in", "truncated_normal"),
            bias_init=bias_init,
            dtype=dtype,
        )

    def position_bias():
        return RelativePositionBiases(
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

    def logits():
        return DenseGeneral(
            features=size.vocabulary,
            use_bias=False,
            kernel_init=scaling(1.0, "fan_in", "truncated_normal"),
            bias_init=bias_init,
            kernel_axis_names=("embed", "vocab"),
            dtype="float32",
        )

    # The layers.

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

    # The stacks.

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=encoder_layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias_factory=position_bias,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=decoder_layer,
            num_layers=size.layers,
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias_factory=position_bias,
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


def number_of_parameters(size: Size) -> int:
    """Counted by tracing: nothing is allocated."""
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: t5_1_1(size).init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def main() -> None:
    for name, size in SIZES.items():
        print(f"{name:6}{number_of_parameters(size):>16,} parameters")

    model = t5_1_1(SIZES["tiny"], dropout_rate=0.1, dtype="float32")
    inputs, targets = jax.random.randint(jax.random.key(1), (2, 4, 10), 1, SIZES["tiny"].vocabulary)  # [B T] x 2
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))  # what the decoder has read when it predicts each target
    params = model.init(jax.random.key(0), inputs, shifted, targets, enable_dropout=False)["params"]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, optimizer_state, key):
        def loss(params):
            predicted = model.apply({"params": params}, inputs, shifted, targets, rngs={"dropout": key})  # [B T V]
            return optax.softmax_cross_entropy_with_integer_labels(predicted, targets).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, value

    params, optimizer_state, before = step(params, optimizer.init(params), jax.random.key(2))
    _, _, after = step(params, optimizer_state, jax.random.key(3))
    print(f"loss of the tiny one: {before:.3f}, and after one training step: {after:.3f}")


if __name__ == "__main__":
    main()
