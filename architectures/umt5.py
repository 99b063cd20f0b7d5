"""UMT5: the page of T5 1.1, but for where positions are told. The same model as `gin/umt5/`.

Each layer of a stack has a table of position biases of its own, where those of T5 1.1 share one; and the vocabulary has
256384 pieces, for 107 languages.

    python architectures/umt5.py     # prints the sizes, and takes one training step with a tiny one

Source: Chung et al. 2023, https://arxiv.org/abs/2304.09151.
"""

import dataclasses

import t5_1_1
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components.relative_position_biases import RelativePositionBiases
from gallery import Page, show

SIZES = {
    "tiny": t5_1_1.SIZES["tiny"],
    **{name: dataclasses.replace(t5_1_1.SIZES[name], vocabulary=256384) for name in ("small", "base", "xl", "xxl")},
}


def umt5(size: t5_1_1.Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return t5_1_1.t5_1_1(
        size, dropout_rate, dtype, encoder_bias=None, decoder_bias=None, layer_bias=RelativePositionBiases
    )


PAGE = Page("umt5", SIZES, umt5, t5_1_1.example, t5_1_1.loss)

if __name__ == "__main__":
    show(PAGE)
