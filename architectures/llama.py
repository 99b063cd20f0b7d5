"""Llama, built from parts, top to bottom. The same model as `gin/llama/`.

    tokens -> embed -> 32 x [attend to what came before, MLP] -> norm -> logits

What tells it from GPT-2: norms only scale; no dense layer has a bias; the MLP is gated, (SiLU(x·W0) ⊙ x·W1)·W2;
positions rotate queries and keys, and nothing else knows them; several query heads may share one of keys and values;
logits have a kernel of their own.

Most decoders since are this one with a few differences, which are the keyword arguments here: see qwen2.py, gemma.py,
gpt_neox.py and their like.

    python architectures/llama.py     # prints the sizes, and takes one training step with a tiny one

Source: Touvron et al. 2023, https://arxiv.org/abs/2302.13971 and https://arxiv.org/abs/2307.09288; Llama Team 2024,
https://arxiv.org/abs/2407.21783.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, DecoderOnly
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention, dot_product_attention
from flaxformer.components.attention.masks import Window
from flaxformer.components.dense import MlpBlock, dense_with_biases
from flaxformer.components.embedding import Embed
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.logits import OutputLogits, TiedLogits
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.rotary_scaling import Llama3Scaling, RotaryScaling
from flaxformer.components.positions.scheme import PositionScheme
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    heads: int
    kv_heads: int  # each serves heads / kv_heads of the queries
    head_dim: int
    width: int
    mlp_width: int
    vocabulary: int = 32000
    norm_epsilon: float = 1e-6
    rotary_timescale: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    tied: bool = False  # logits by the token table


_8B = Size(32, 32, 8, 128, 4096, 14336, 128256, norm_epsilon=1e-5, rotary_timescale=500000.0)
_70B = Size(80, 64, 8, 128, 8192, 28672, 128256, norm_epsilon=1e-5, rotary_timescale=500000.0)
SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "7B": Size(layers=32, heads=32, kv_heads=32, head_dim=128, width=4096, mlp_width=11008),
    "13B": Size(layers=40, heads=40, kv_heads=40, head_dim=128, width=5120, mlp_width=13824),
    "70B": Size(80, 64, 8, 128, 8192, 28672, norm_epsilon=1e-5),
    "3_8B": _8B,
    "3_70B": _70B,
    "3.1_8B": dataclasses.replace(_8B, rotary_scaling=Llama3Scaling(factor=8.0)),
    "3.1_70B": dataclasses.replace(_70B, rotary_scaling=Llama3Scaling(factor=8.0)),
    "3.2_1B": Size(16, 32, 8, 64, 2048, 8192, 128256, 1e-5, 500000.0, Llama3Scaling(factor=32.0), tied=True),
}


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a layer's attention knows of places: how it tells them apart, and how far it sees."""

    positions: PositionScheme
    reach: Window | None = None


def llama(
    size: Size,
    dtype: str = "float32",
    *,
    sights: Sequence[Sight] = (),
    layer: Callable[..., nn.Module] = DecoderLayer,
    norm: Callable[..., nn.Module] = T5LayerNorm,
    head_norm: Callable[..., nn.Module] | None = None,
    activations: Sequence[str] = ("silu", "linear"),
    biased: Sequence[str] = (),
    mlp_bias: bool = False,
    make_mlp: Callable[[], nn.Module] | None = None,
    attention_fn: Callable = dot_product_attention,
    rescale_logits: bool = True,
    embedding_scale: float | None = None,
    embedding_norm: Callable[..., nn.Module] | None = None,
    logits_bias: bool = False,
    logits_cap: float | None = None,
) -> DecoderOnly:
    """The model: parameters in float32, computing in `dtype`, logits in float32.

    Args:
      size: which one.
      dtype: of the computation.
      sights: of the layers, in turn; all rotate and see all that came before where none is given.
      layer: how the branches of a layer are arranged.
      norm: of the layers, and the last.
      head_norm: of the heads of queries and keys.
      activations: of the MLP; several are multiplied.
      biased: which of "query", "key", "value" and "out" have a bias.
      mlp_bias: whether the MLP's layers have one.
      make_mlp: of each layer, in the place of an MLP with these activations and biases.
      attention_fn: from heads to what they see.
      rescale_logits: scores are divided by the square root of a head's width.
      embedding_scale: a factor on the embeddings.
      embedding_norm: of the embeddings.
      logits_bias: whether the logits have a bias, if they are not by the token table.
      logits_cap: bounds them.
    """
    kernel_init = nn.initializers.normal(0.02)

    # The parts. Each is a function, since every layer gets a fresh one.

    def dropout():
        return nn.Dropout(0.0)  # pre-training does without

    def make_norm(kind=norm, **options):
        return kind(epsilon=size.norm_epsilon, dtype=dtype, **options)

    def make_head_norm():
        return None if head_norm is None else make_norm(head_norm, scale_axis_name="kv")

    def attention(sight):
        return MultiHeadDotProductAttention(
            num_heads=size.heads,
            num_kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            use_bias=False,
            dense_general_factory=lambda **options: dense_with_biases(biased=biased, **options),
            rescale_logits=rescale_logits,
            attention_fn=attention_fn,
            positions=sight.positions,
            reach=sight.reach,
            q_norm=make_head_norm(),
            k_norm=make_head_norm(),
            dropout_rate=0.0,
            broadcast_dropout=False,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def mlp():
        return MlpBlock(
            intermediate_dim=size.mlp_width,
            activations=activations,
            use_bias=mlp_bias,
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
            scale=embedding_scale,
            dtype=dtype,
        )

    def logits():
        if size.tied:
            return TiedLogits(cap=logits_cap)
        return OutputLogits(
            features=size.vocabulary,
            use_bias=logits_bias,
            kernel_init=kernel_init,
            kernel_axis_names=("embed", "vocab"),
            cap=logits_cap,
            dtype="float32",
        )

    # The layers, the stack, the model.

    def with_sight(sight):
        return lambda shared_relative_position_bias: layer(
            self_attention=attention(sight),
            encoder_decoder_attention=None,
            mlp=(make_mlp or mlp)(),
            dropout_factory=dropout,
            layer_norm_factory=make_norm,
            shared_relative_position_bias=shared_relative_position_bias,
        )

    def decoder(shared_token_embedder):
        return Decoder(
            layer_factory=[with_sight(sight) for sight in sights or (Sight(rotary(size)),)],
            num_layers=size.layers,
            dropout_factory=dropout,
            layer_norm_factory=make_norm,
            token_embedder_factory=token_embedder,
            embedding_transform_factory=None if embedding_norm is None else lambda: make_norm(embedding_norm),
            output_logits_factory=logits,
            shared_token_embedder=shared_token_embedder,
            dtype=dtype,
        )

    return DecoderOnly(decoder_factory=decoder, padding_id=None)  # no id is padding


def rotary(size: Size, fraction: float = 1.0) -> Rotary:
    """Rotates that fraction of each head, at the speeds of the size."""
    return Rotary(max_timescale=size.rotary_timescale, fraction=fraction, scaling=size.rotary_scaling)


PAGE = Page("llama", SIZES, llama, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
