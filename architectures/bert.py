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

from flaxformer.architectures.heads import Classifier, EncoderWithHeads, Pooler
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer, PostNorm
from flaxformer.components import initializers
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TransformedLogits
from gallery import Page, cross_entropy, show, text


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
MASK = 103  # the token that stands for hidden ones


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


def masked(vocabulary: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, every third of them hidden, what they were, and which are hidden; `[B T]` each."""
    targets = text(vocabulary)
    hidden = jnp.broadcast_to(jnp.arange(targets.shape[1]) % 3 == 1, targets.shape)
    return jnp.where(hidden, MASK, targets), targets, hidden


def loss_of_masked(outputs: dict[str, jax.Array]) -> jax.Array:
    _, targets, hidden = masked(outputs["masked_lm"].shape[-1])
    return cross_entropy(outputs["masked_lm"], targets, where=hidden)


def example(size: Size) -> tuple[tuple, dict]:
    """Rows of two sentences each."""
    tokens, _, _ = masked(size.vocabulary)
    return (tokens,), {"token_types": jnp.broadcast_to(jnp.arange(tokens.shape[1]) // 3, tokens.shape)}


def loss(outputs: dict[str, jax.Array]) -> jax.Array:
    """What the hidden tokens were, and that the second sentence follows."""
    follows = jnp.zeros(len(outputs["next_sentence"]), jnp.int32)
    return loss_of_masked(outputs) + cross_entropy(outputs["next_sentence"], follows)


PAGE = Page("bert", SIZES, bert, example, loss)

if __name__ == "__main__":
    show(PAGE)
