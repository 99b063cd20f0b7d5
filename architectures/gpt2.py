"""GPT-2, built from parts, top to bottom. The same model as `gin/gpt2/`.

    tokens, positions -> embed -> 12 x [attend to what came before, MLP] -> norm -> logits by the token table

Four things tell it from T5: norms centre and have a bias; every dense layer has a bias; positions are learned vectors,
added to the tokens; and logits are products with the token table, not scaled.

    python architectures/gpt2.py     # prints the sizes, and takes one training step with a tiny one

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, DecoderOnly
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.logits import TiedLogits
from gallery import Page, continuation, loss_of_continuation, show


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


def gpt2(
    size: Size,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    *,
    activation: str = "gelu",  # its approximation by tanh
    position_offset: int = 0,
    number_tokens: Callable[..., Any] | None = None,
) -> DecoderOnly:
    """The model: parameters in float32, computing in `dtype`, logits in float32.

    Args:
      size: which one.
      dropout_rate: of the embeddings, the branches and the attention.
      dtype: of the computation.
      activation: of the MLP.
      position_offset: how many unused rows the positions have in front.
      number_tokens: which position each token has; 0, 1, 2... when None.
    """
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
            activations=(activation,),
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
        return PositionEmbed(size.positions, size.width, embedding_init=kernel_init, offset=position_offset)

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
            number_tokens=number_tokens,
            output_logits_factory=TiedLogits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return DecoderOnly(decoder_factory=decoder, padding_id=None)  # no id is padding


PAGE = Page("gpt2", SIZES, gpt2, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
