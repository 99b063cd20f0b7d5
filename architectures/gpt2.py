"""GPT-2, built from parts, top to bottom. The same model as `gin/gpt2/`.

    tokens, positions -> embed -> 12 x [attend to what came before, MLP] -> norm -> logits by the token table

Four things tell it from T5: norms centre and have a bias; every dense layer has a bias; positions are learned vectors,
added to the tokens; and logits are products with the token table, not scaled.

    python architectures/gpt2.py     # prints the sizes, and takes one training step with a tiny one

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, DecoderOnly
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TiedLogits


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    heads: int
    width: int
    mlp_width: int
    vocabulary: int = 50257
    positions: int = 1024


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=128, vocabulary=512),
    "small": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "medium": Size(layers=24, heads=16, width=1024, mlp_width=4096),
    "large": Size(layers=36, heads=20, width=1280, mlp_width=5120),
    "xl": Size(layers=48, heads=25, width=1600, mlp_width=6400),
}


def gpt2(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> DecoderOnly:
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
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=("gelu",),  # its approximation by tanh
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
        return PositionEmbed(num_embeddings=size.positions, features=size.width, embedding_init=kernel_init)

    # The layer, the stack, the model.

    def layer(shared_relative_position_bias):
        return DecoderLayer(
            self_attention=attention(),
            encoder_decoder_attention=None,
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=layer,
            num_layers=size.layers,
            dropout_factory=dropout,
            layer_norm_factory=norm,
            token_embedder_factory=token_embedder,
            position_embedder_factory=position_embedder,
            output_logits_factory=TiedLogits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return DecoderOnly(decoder_factory=decoder, padding_id=None)  # no id is padding


def number_of_parameters(size: Size) -> int:
    """Counted by tracing: nothing is allocated."""
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda: gpt2(size).init(jax.random.key(0), tokens, decoder_valid=tokens, enable_dropout=False)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def main() -> None:
    for name, size in SIZES.items():
        print(f"{name:6}{number_of_parameters(size):>16,} parameters")

    model = gpt2(SIZES["tiny"])
    tokens = jax.random.randint(jax.random.key(1), (4, 11), 0, SIZES["tiny"].vocabulary)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # [B T] x 2
    valid = jnp.ones_like(inputs)
    init = jax.jit(lambda key: model.init(key, inputs, decoder_valid=valid, enable_dropout=False))
    params = init(jax.random.key(0))["params"]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, optimizer_state, key):
        def loss(params):
            predicted = model.apply({"params": params}, inputs, decoder_valid=valid, rngs={"dropout": key})  # [B T V]
            return optax.softmax_cross_entropy_with_integer_labels(predicted, targets).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, value

    params, optimizer_state, before = step(params, optimizer.init(params), jax.random.key(2))
    _, _, after = step(params, optimizer_state, jax.random.key(3))
    print(f"loss of the tiny one: {before:.3f}, and after one training step: {after:.3f}")


if __name__ == "__main__":
    main()
