"""LongT5: the page of T5 1.1, but for how far the encoder's tokens see. The same model as `gin/longt5/`.

A token of the encoder sees 127 others on either side. In the variant with transient globals, it also sees a summary of
every 16 tokens, the normalised sum of their states, made anew in each layer; how far a summary is has a table of biases
of its own.

    python architectures/longt5.py     # prints the sizes, and takes one training step with a tiny one

Source: Guo et al. 2021, https://arxiv.org/abs/2112.07916.
"""

import dataclasses
import functools

import t5_1_1
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.masks import Window
from flaxformer.components.attention.transient_global import TokenAndGlobalBiases, TransientGlobalAttention
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.components.logits import OutputLogits
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(t5_1_1.Size):
    local_radius: int = 127
    tokens_per_block: int = 16


SIZES = {
    "tiny": Size(layers=2, heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512, local_radius=3),
    "base": Size(layers=12, heads=12, head_dim=64, width=768, mlp_width=2048),
    "large": Size(layers=24, heads=16, head_dim=64, width=1024, mlp_width=2816),
    "xl": Size(layers=24, heads=32, head_dim=64, width=2048, mlp_width=5120),
}


def longt5(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model with local attention: parameters in float32, computing in `dtype`, logits in float32."""
    near = Window(left=size.local_radius, right=size.local_radius)
    attention = functools.partial(MultiHeadDotProductAttention, reach=near)
    return t5_1_1.t5_1_1(size, dropout_rate, dtype, encoder_attention=attention, head=OutputLogits)


def with_globals(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model with transient globals, likewise."""
    attention = functools.partial(
        TransientGlobalAttention,
        radius=size.local_radius,
        tokens_per_block=size.tokens_per_block,
        norm_factory=lambda: T5LayerNorm(dtype=dtype),
    )
    return t5_1_1.t5_1_1(
        size,
        dropout_rate,
        dtype,
        encoder_attention=attention,
        encoder_bias=TokenAndGlobalBiases,
        head=OutputLogits,
    )


PAGE = Page("longt5", SIZES, longt5, t5_1_1.example, t5_1_1.loss)

if __name__ == "__main__":
    show(PAGE)
