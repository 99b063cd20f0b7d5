"""BERT, built from parts, top to bottom. The same model as `gin/bert/`.

    tokens, positions, types -> embed -> norm -> 12 x [attend to all, norm, MLP, norm] -> hidden states
    hidden states -> masked_lm: what the hidden tokens were
                  -> pooled, from the first token -> next_sentence: whether the second sentence follows

What tells it from T5: norms come behind each residual sum, centre, and have a bias; the sum of the embeddings has one
too; positions and the two sentences are learned vectors, added to the tokens.

    python architectures/bert.py     # prints the sizes, and takes one training step with a tiny one

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxformer.architectures.heads import Classifier, EncoderWithHeads, Pooler
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer, PostNorm
from flaxformer.components import initializers
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TransformedLogits


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    heads: int
    width: int
    mlp_width: int
    vocabulary: int = 30522
    positions: int = 512


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}


def bert(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model with the heads it was pretrained with: parameters in float32, computing in `dtype`."""
    kernel_init = initializers.truncated_normal(stddev=0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def norm():
        return LayerNorm(epsilon=1e-12, dtype=dtype)

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
            activations=("gelu_exact",),
            use_bias=True,
            intermediate_dropout_rate=0.0,
            final_dropout_rate=0.0,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def table(rows):
        return Embed(
            num_embeddings=rows,
            features=size.width,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=kernel_init,
            dtype=dtype,
        )

    def position_embedder():
        return PositionEmbed(num_embeddings=size.positions, features=size.width, embedding_init=kernel_init)

    # The layer, the stack, the heads, the model.

    def layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=PostNorm(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=None,  # the last layer ends in one
            token_embedder_factory=lambda: table(size.vocabulary),
            position_embedder_factory=position_embedder,
            token_type_embedder_factory=lambda: table(2),
            embedding_transform_factory=norm,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def masked_lm():
        return TransformedLogits(size.width, size.vocabulary, "gelu_exact", norm, dtype=dtype)

    heads = (
        ("masked_lm", masked_lm),
        ("pooled", lambda: Pooler(size.width, dtype=dtype)),
        ("next_sentence", lambda: Classifier(2, dtype=dtype)),
    )
    return EncoderWithHeads(encoder_factory=encoder, head_factories=heads)


def number_of_parameters(size: Size) -> int:
    """Counted by tracing: nothing is allocated."""
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: bert(size).init(jax.random.key(0), tokens, enable_dropout=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def main() -> None:
    for name, size in SIZES.items():
        print(f"{name:6}{number_of_parameters(size):>16,} parameters")

    model = bert(SIZES["tiny"])
    targets = jax.random.randint(jax.random.key(1), (4, 10), 1, SIZES["tiny"].vocabulary)  # [B T]
    hidden = jnp.arange(10) % 3 == 1  # these are to be guessed
    tokens = jnp.where(hidden, 103, targets)
    types = jnp.broadcast_to(jnp.arange(10) // 5, tokens.shape)  # two sentences
    follows = jnp.zeros(4, jnp.int32)
    init = jax.jit(lambda key: model.init(key, tokens, token_types=types, enable_dropout=False))
    params = init(jax.random.key(0))["params"]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, optimizer_state, key):
        def loss(params):
            outputs = model.apply({"params": params}, tokens, token_types=types, rngs={"dropout": key})
            guessed = optax.softmax_cross_entropy_with_integer_labels(outputs["masked_lm"], targets)
            order = optax.softmax_cross_entropy_with_integer_labels(outputs["next_sentence"], follows)
            return jnp.mean(guessed, where=hidden) + order.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, value

    params, optimizer_state, before = step(params, optimizer.init(params), jax.random.key(2))
    _, _, after = step(params, optimizer_state, jax.random.key(3))
    print(f"loss of the tiny one: {before:.3f}, and after one training step: {after:.3f}")


if __name__ == "__main__":
    main()
