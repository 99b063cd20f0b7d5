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

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxformer.architectures.t5.t5_architecture import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderDecoder,
    EncoderLayer,
    PostNorm,
)
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TiedLogits


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
PADDING = 1


def bart(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderDecoder:
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
            dropout_rate=0.0,
            broadcast_dropout=False,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=("gelu_exact",),
            use_bias=True,
            intermediate_dropout_rate=0.0,
            final_dropout_rate=0.0,
            kernel_init=kernel_init,
            dtype=dtype,
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
        return PositionEmbed(size.positions, size.width, embedding_init=kernel_init, offset=2)

    def logits():
        return TiedLogits(use_bias=True, num_embeddings=size.vocabulary)

    # The layers, the stacks, the model.

    def encoder_layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=PostNorm(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder_layer(shared_relative_position_bias):
        return DecoderLayer(
            self_attention=attention(),
            encoder_decoder_attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=PostNorm(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=encoder_layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=None,
            position_embedder_factory=position_embedder,
            embedding_transform_factory=norm,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=decoder_layer,
            num_layers=size.layers,
            dropout_factory=dropout,
            layer_norm_factory=None,
            position_embedder_factory=position_embedder,
            embedding_transform_factory=norm,
            output_logits_factory=logits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return EncoderDecoder(
        encoder_factory=encoder,
        decoder_factory=decoder,
        shared_token_embedder_factory=token_embedder,
        padding_id=PADDING,
    )


def number_of_parameters(size: Size) -> int:
    """Counted by tracing: nothing is allocated."""
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: bart(size).init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def main() -> None:
    for name, size in SIZES.items():
        print(f"{name:6}{number_of_parameters(size):>16,} parameters")

    model = bart(SIZES["tiny"])
    inputs, targets = jax.random.randint(jax.random.key(1), (2, 4, 10), 3, SIZES["tiny"].vocabulary)  # [B T] x 2
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=2)  # starts with the token that ends
    init = jax.jit(lambda key: model.init(key, inputs, shifted, targets, enable_dropout=False))
    params = init(jax.random.key(0))["params"]
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
