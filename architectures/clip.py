"""CLIP, built from parts, top to bottom. The same model as `gin/clip/`.

    tokens -> embed, positions -> 12 x [attend to what came before, MLP] -> norm -> where the text ends  -> project
    image  -> patches, positions -> norm -> 12 x [attend to all, MLP] -> the first token -> norm         -> project
    -> both of unit length -> their products, times a learned scale

What tells it from other transformers: there are two of them, which meet in one product; the texts' is an encoder, but
causal; the images' is ViT with a norm in front, none behind, no bias on patches; and GELU is the quick approximation.

    python architectures/clip.py     # prints the sizes, and takes one training step with a tiny one

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer
from flaxformer.architectures.two_towers import EndPooler, FirstPooler, TwoTowers
from flaxformer.architectures.vision import ImageEncoder, PatchEmbed
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.masks import Causal
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.components.embedding import Embed, PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, cross_entropy, noise, show, text


@dataclasses.dataclass(frozen=True)
class Tower:
    layers: int
    heads: int
    width: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class Size:
    text: Tower
    image: Tower
    patch: tuple[int, int]  # height and width
    grid: tuple[int, int]  # patches per column and per row
    projection_dim: int = 512
    vocabulary: int = 49408
    positions: int = 77


BASE = Tower(layers=12, heads=8, width=512, mlp_width=2048), Tower(layers=12, heads=12, width=768, mlp_width=3072)
LARGE = Tower(layers=12, heads=12, width=768, mlp_width=3072), Tower(layers=24, heads=16, width=1024, mlp_width=4096)
TINY = Tower(layers=2, heads=4, width=32, mlp_width=64), Tower(layers=2, heads=4, width=24, mlp_width=48)
SIZES = {
    "tiny": Size(*TINY, patch=(4, 4), grid=(2, 3), projection_dim=16, vocabulary=512),
    "base32": Size(*BASE, patch=(32, 32), grid=(7, 7)),
    "base16": Size(*BASE, patch=(16, 16), grid=(14, 14)),
    "large14": Size(*LARGE, patch=(14, 14), grid=(16, 16), projection_dim=768),
    "large14_336": Size(*LARGE, patch=(14, 14), grid=(24, 24), projection_dim=768),
}


def clip(size: Size, dtype: str = "float32") -> TwoTowers:
    """The model: parameters in float32, computing in `dtype`."""
    kernel_init = nn.initializers.normal(0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def no_dropout():
        return nn.Dropout(0.0)

    def norm():
        return LayerNorm(epsilon=1e-5, dtype=dtype)

    def layers(tower, reach=None):
        """What makes a layer of a tower, whose tokens see each other as far as `reach` says."""

        def attention():
            return MultiHeadDotProductAttention(
                num_heads=tower.heads,
                reach=reach,
                use_bias=True,
                rescale_logits=True,  # divided by the square root of a head's width
                dropout_rate=0.0,
                broadcast_dropout=False,
                kernel_init=kernel_init,
                dtype=dtype,
            )

        def mlp():
            return MlpBlock(
                intermediate_dim=tower.mlp_width,
                activations=("quick_gelu",),
                use_bias=True,
                intermediate_dropout_rate=0.0,
                final_dropout_rate=0.0,
                kernel_init=kernel_init,
                dtype=dtype,
            )

        def layer(shared_relative_position_bias):
            return EncoderLayer(
                attention=attention(),
                mlp=mlp(),
                dropout_factory=no_dropout,
                layer_norm_factory=norm,
                shared_relative_position_bias=shared_relative_position_bias,
            )

        return layer

    # The text's tower.

    def token_embedder():
        return Embed(
            num_embeddings=size.vocabulary,
            features=size.text.width,
            cast_input_dtype="int32",
            embedding_init=kernel_init,
            dtype=dtype,
        )

    def position_embedder():
        return PositionEmbed(num_embeddings=size.positions, features=size.text.width, embedding_init=kernel_init)

    def text_encoder(shared_token_embedder):
        return Encoder(
            layer_factory=layers(size.text, reach=Causal()),
            num_layers=size.text.layers,
            input_dropout_factory=no_dropout,
            output_dropout_factory=no_dropout,
            layer_norm_factory=norm,
            token_embedder_factory=token_embedder,
            position_embedder_factory=position_embedder,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def text_tower():
        return EncoderWithHeads(
            encoder_factory=text_encoder,
            head_factories=(("pooled", EndPooler),),  # the token with the largest id ends a text
            padding_id=None,
        )

    # The image's tower.

    def patches():
        return PatchEmbed(size.image.width, size.patch, size.grid, use_bias=False, kernel_init=kernel_init, dtype=dtype)

    def image_encoder(shared_token_embedder):
        return Encoder(
            layer_factory=layers(size.image),
            num_layers=size.image.layers,
            input_dropout_factory=no_dropout,
            output_dropout_factory=no_dropout,
            layer_norm_factory=None,
            token_embedder_factory=patches,
            embedding_transform_factory=norm,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    def image_tower():
        return ImageEncoder(encoder_factory=image_encoder, head_factories=(("pooled", lambda: FirstPooler(norm)),))

    # Both.

    def projection():
        return DenseGeneral(
            features=size.projection_dim,
            use_bias=False,
            kernel_init=kernel_init,
            kernel_axis_names=("embed", "mlp"),
            dtype=dtype,
        )

    return TwoTowers(text_factory=text_tower, image_factory=image_tower, projection_factory=projection)


def example(size: Size) -> tuple[tuple, dict]:
    """Two texts, and the image that belongs to each."""
    height, width = (patch * count for patch, count in zip(size.patch, size.grid, strict=True))
    return (text(size.vocabulary), noise(2, height, width, 3)), {}


def loss(outputs: dict[str, jax.Array]) -> jax.Array:
    """Of saying which image belongs to each text, and which text to each image."""
    scores = outputs["logits_per_text"]  # [texts images]
    pairs = jnp.arange(len(scores))
    return (cross_entropy(scores, pairs) + cross_entropy(scores.T, pairs)) / 2


PAGE = Page("clip", SIZES, clip, example, loss)

if __name__ == "__main__":
    show(PAGE)
