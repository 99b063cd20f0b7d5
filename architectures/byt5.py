"""ByT5: the page of T5 1.1, reading bytes. The same model as `gin/byt5/`.

The vocabulary is 256 bytes and some more; what its table saves goes into wider layers, and into an encoder three times
as deep as the decoder.

    python architectures/byt5.py     # prints the sizes, and takes one training step with a tiny one

Source: Xue et al. 2022, https://arxiv.org/abs/2105.13626.
"""

import dataclasses

import t5_1_1
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from gallery import Page, show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size(t5_1_1.Size):
    decoder_layers: int  # and `layers` are those of the encoder
    vocabulary: int = 384


SIZES = {
    "tiny": Size(layers=3, decoder_layers=1, heads=4, head_dim=8, width=32, mlp_width=64),
    "small": Size(layers=12, decoder_layers=4, heads=6, head_dim=64, width=1472, mlp_width=3584),
    "base": Size(layers=18, decoder_layers=6, heads=12, head_dim=64, width=1536, mlp_width=3968),
    "large": Size(layers=36, decoder_layers=12, heads=16, head_dim=64, width=1536, mlp_width=3840),
    "xl": Size(layers=36, decoder_layers=12, heads=32, head_dim=64, width=2560, mlp_width=6720),
    "xxl": Size(layers=36, decoder_layers=12, heads=64, head_dim=64, width=4672, mlp_width=12352),
}


def byt5(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return t5_1_1.t5_1_1(size, dropout_rate, dtype, decoder_layers=size.decoder_layers)


PAGE = Page("byt5", SIZES, byt5, t5_1_1.example, t5_1_1.loss)

if __name__ == "__main__":
    show(PAGE)
