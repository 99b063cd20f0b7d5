"""wav2vec 2.0, built from parts, top to bottom. The same model as `gin/wav2vec2/`.

    wave -> 7 convolutions, which shorten it by 320 -> norm -> project
    -> + a convolution of the neighbours -> norm -> 12 x [attend to all, norm, MLP, norm] -> hidden states
    hidden states -> ctc: what is said in each frame

What tells it from BERT: it reads a wave, through convolutions, the first of which is normalised over the length; frames
know where they stand by their neighbours, through one more convolution; and MLPs drop out inside, too.

    python architectures/wav2vec2.py     # prints the sizes, and takes one training step with a tiny one

Source: Baevski et al. 2020, https://arxiv.org/abs/2006.11477.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxformer.architectures.heads import TokenClassifier
from flaxformer.architectures.t5.t5_architecture import Encoder, EncoderLayer, PostNorm, PreNorm
from flaxformer.architectures.waveforms import ConvolvedPositions, MaskedFrames, TimeNorm, WaveEncoder, WaveFeatures
from flaxformer.components import initializers
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.training.ctc import ctc_loss
from gallery import Page, noise, show

Norm = Callable[..., nn.Module]


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    heads: int
    width: int
    mlp_width: int
    feature_dims: tuple[int, ...] = (512,) * 7  # of the convolutions, in turn
    feature_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    feature_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_kernel: int = 128
    position_groups: int = 16
    vocabulary: int = 32


TINY = Size(
    layers=2,
    heads=4,
    width=32,
    mlp_width=64,
    feature_dims=(16, 16),
    feature_kernels=(8, 4),
    feature_strides=(4, 2),
    position_kernel=8,
    position_groups=4,
)
SIZES = {
    "tiny": TINY,
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}


def wav2vec2(
    size: Size,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    *,
    feature_bias: bool = False,
    first_feature_norm: Norm = TimeNorm,
    feature_norm: Norm | None = None,
    residual: Callable[[], PostNorm | PreNorm] = PostNorm,
    first_norm: Norm | None = LayerNorm,
    final_norm: Norm | None = None,
) -> WaveEncoder:
    """The model with a head for CTC: parameters in float32, computing in `dtype`.

    Args:
      size: its numbers.
      dropout_rate: everywhere but on the features.
      dtype: of the computation.
      feature_bias: whether convolutions of features have biases.
      first_feature_norm: the norm behind the first of them.
      feature_norm: the norm behind each of the others.
      residual: says where the norms of a layer stand.
      first_norm: the norm before the first layer.
      final_norm: the norm behind the last layer.
    """
    kernel_init = initializers.truncated_normal(stddev=0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(dropout_rate)

    def no_dropout():
        return nn.Dropout(0.0)

    def norm(kind: Norm = LayerNorm):
        return kind(epsilon=1e-5, dtype=dtype)

    def made(kind: Norm | None):
        """What makes that norm, or None."""
        return kind and functools.partial(norm, kind)

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
            intermediate_dropout_rate=dropout_rate,
            final_dropout_rate=0.0,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    # From the wave to what the encoder reads.

    def features():
        return WaveFeatures(
            features=size.feature_dims,
            kernel_sizes=size.feature_kernels,
            strides=size.feature_strides,
            use_bias=feature_bias,
            first_norm_factory=functools.partial(norm, first_feature_norm),
            norm_factory=made(feature_norm),
            activation="gelu_exact",
            dtype=dtype,
        )

    def projection():
        return DenseGeneral(
            features=size.width,
            use_bias=True,
            kernel_init=kernel_init,
            kernel_axis_names=("unmodeled", "embed"),
            dtype=dtype,
        )

    def positions():
        return ConvolvedPositions(size.position_kernel, size.position_groups, activation="gelu_exact", dtype=dtype)

    # The layer, the stack, the head, the model.

    def layer(shared_relative_position_bias):
        return EncoderLayer(
            attention=attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            residual=residual(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def encoder(shared_token_embedder):
        return Encoder(
            layer_factory=layer,
            num_layers=size.layers,
            input_dropout_factory=dropout,
            output_dropout_factory=no_dropout,
            layer_norm_factory=made(final_norm),
            token_embedder_factory=positions,
            embedding_transform_factory=made(first_norm),
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return WaveEncoder(
        encoder_factory=encoder,
        head_factories=(("ctc", lambda: TokenClassifier(size.vocabulary, dtype=dtype)),),
        features_factory=features,
        feature_norm_factory=norm,
        projection_factory=projection,
        projection_dropout_factory=no_dropout,
        masked_factory=MaskedFrames,
    )


def example(size: Size) -> tuple[tuple, dict]:
    """Two waves, as long as eight frames need."""
    samples = 8
    for kernel, stride in zip(reversed(size.feature_kernels), reversed(size.feature_strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return (noise(2, samples),), {}


def loss(outputs: dict[str, jax.Array]) -> jax.Array:
    """Of three labels in each wave."""
    return ctc_loss(outputs["ctc"], jnp.array([[3, 4, 5], [6, 7, 6]])).mean()


PAGE = Page("wav2vec2", SIZES, wav2vec2, example, loss)

if __name__ == "__main__":
    show(PAGE)
