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
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.heads import Classifier, EncoderWithHeads, Pooler
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer, PostNorm
from flaxformer.components import initializers
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import DenseGeneral, MlpBlock
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

    @property
    def token_width(self) -> int:  # of the embeddings
        return self.width


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}
MASK = 103  # the token that stands for hidden ones
KERNEL_INIT = initializers.truncated_normal(stddev=0.02)
scaled_attention = functools.partial(MultiHeadDotProductAttention, rescale_logits=True)  # by 1/√(a head's width)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What heads are made from."""

    size: Size
    norm: Callable[[], nn.Module]
    activation: str
    dtype: str


def masked_lm(parts: Parts) -> tuple[str, Callable[[], nn.Module]]:
    size = parts.size
    return "masked_lm", lambda: TransformedLogits(
        size.token_width, size.vocabulary, parts.activation, parts.norm, dtype=parts.dtype
    )


def pooled(parts: Parts) -> tuple[str, Callable[[], nn.Module]]:
    return "pooled", lambda: Pooler(parts.size.width, dtype=parts.dtype)


def next_sentence(parts: Parts) -> tuple[str, Callable[[], nn.Module]]:
    return "next_sentence", lambda: Classifier(2, dtype=parts.dtype)


def bert(
    size: Size,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    *,
    attention_layer: Callable[..., nn.Module] = scaled_attention,
    activation: str = "gelu_exact",
    norm_epsilon: float = 1e-12,
    position_table: Callable[..., nn.Module] | None = PositionEmbed,
    number_tokens: Callable[..., Any] | None = None,
    token_types: int = 2,
    stack: Callable[..., nn.Module] = Encoder,
    layer_order: Sequence[int] | None = None,
    heads: Sequence[Callable[[Parts], tuple[str, Callable[[], nn.Module]]]] = (masked_lm, pooled, next_sentence),
    padding: int = 0,
) -> EncoderWithHeads:
    """The model with the heads it was pretrained with: parameters in float32, computing in `dtype`.

    Args:
      size: which one.
      dropout_rate: of the embeddings, the branches and the attention.
      dtype: of the computation.
      attention_layer: makes the attention.
      activation: of the MLP, and of the masked language model's head.
      norm_epsilon: of all norms.
      position_table: makes the embedder of positions, if there is one.
      number_tokens: which position each token has; 0, 1, 2... when None.
      token_types: how many kinds of tokens have a vector, such as those of the second sentence.
      stack: makes the encoder.
      layer_order: which layer runs when; each once, in turn, when None.
      heads: what stands on the encoder.
      padding: the id of padding.
    """

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def norm():
        return LayerNorm(epsilon=norm_epsilon, dtype=dtype)

    def attention():
        return attention_layer(
            num_heads=size.heads,
            use_bias=True,
            dropout_rate=dropout_rate,
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

    def table(rows):
        return Embed(
            num_embeddings=rows,
            features=size.token_width,
            cast_input_dtype="int32",
            attend_dtype="float32",
            embedding_init=KERNEL_INIT,
            dtype=dtype,
        )

    positions = {"num_embeddings": size.positions, "features": size.token_width, "embedding_init": KERNEL_INIT}

    def embedding_transform():
        if size.token_width == size.width:
            return norm()
        names = ("embed", "mlp")
        wider = DenseGeneral(size.width, True, dtype=dtype, kernel_init=KERNEL_INIT, kernel_axis_names=names)
        return nn.Sequential([norm(), wider])

    # The layer, the stack, the model.

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
        return stack(
            layer_factory=layer,
            num_layers=size.layers,
            layer_order=layer_order,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=None,  # the last layer ends in one
            token_embedder_factory=lambda: table(size.vocabulary),
            position_embedder_factory=None
            if position_table is None
            else functools.partial(position_table, **positions),
            number_tokens=number_tokens,
            token_type_embedder_factory=(lambda: table(token_types)) if token_types else None,
            embedding_transform_factory=embedding_transform,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    parts = Parts(size, norm, activation, dtype)
    return EncoderWithHeads(
        encoder_factory=encoder, head_factories=tuple(head(parts) for head in heads), padding_id=padding
    )


def masked(vocabulary: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, every third of them hidden, what they were, and which are hidden; `[B T]` each."""
    targets = text(vocabulary)
    hidden = jnp.broadcast_to(jnp.arange(targets.shape[1]) % 3 == 1, targets.shape)
    return jnp.where(hidden, MASK, targets), targets, hidden


def example_of_masked(size: Size) -> tuple[tuple, dict]:
    return masked(size.vocabulary)[:1], {}


def loss_of_masked(outputs: dict[str, jax.Array]) -> jax.Array:
    """How well the hidden tokens are guessed."""
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
