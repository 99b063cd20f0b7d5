"""ViT, built from parts, top to bottom. The same model as `gin/vit/`.

    image -> 16 x 16 patches, behind a first token, with positions -> 12 x [attend to all, MLP] -> norm -> hidden states
    the first token's hidden state -> labels: what the image shows

What tells it from BERT: it reads patches, each through one dense layer, and not tokens; norms come before each branch,
and one more behind the last layer; there is no dropout.

    python architectures/vit.py     # prints the sizes, and takes one training step with a tiny one

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.heads import Pooler
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer
from flaxformer.architectures.vision import ImageEncoder, PatchEmbed
from flaxformer.components import initializers
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import MlpBlock, dense_with_biases
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, cross_entropy, noise, show


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    heads: int
    width: int
    mlp_width: int
    patch: tuple[int, int] = (16, 16)  # height and width
    grid: tuple[int, int] = (14, 14)  # patches per column and per row
    classes: int = 1000


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, patch=(4, 4), grid=(2, 3)),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "base32": Size(layers=12, heads=12, width=768, mlp_width=3072, patch=(32, 32), grid=(7, 7)),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
    "huge": Size(layers=32, heads=16, width=1280, mlp_width=5120, patch=(14, 14), grid=(16, 16)),
}
BIASED = ("query", "key", "value", "out")


def vit(size: Size, dropout_rate: float = 0.0, dtype: str = "float32") -> ImageEncoder:
    """The model with a head for labels: parameters in float32, computing in `dtype`."""
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
            dense_general_factory=functools.partial(dense_with_biases, biased=BIASED),
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

    def patches():
        return PatchEmbed(size.width, size.patch, size.grid, kernel_init=kernel_init, dtype=dtype)

    # The layer, the stack, the head, the model.

    def layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=lambda: nn.Dropout(0.0),
            layer_norm_factory=norm,
            token_embedder_factory=patches,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def labels():
        return Pooler(size.classes, activation="linear", dtype=dtype)

    return ImageEncoder(encoder_factory=encoder, head_factories=(("labels", labels),))


def example(size: Size) -> tuple[tuple, dict]:
    """Two images."""
    height, width = (patch * count for patch, count in zip(size.patch, size.grid, strict=True))
    return (noise(2, height, width, 3),), {}


def loss(outputs: dict[str, jax.Array]) -> jax.Array:
    """Of the labels, if the images show the classes 1 and 2."""
    return cross_entropy(outputs["labels"], jnp.array([1, 2]))


PAGE = Page("vit", SIZES, vit, example, loss)

if __name__ == "__main__":
    show(PAGE)
