"""mT5: T5 1.1 in its five sizes, with a vocabulary of 250112 pieces for 101 languages. The same as `gin/mt5/`.

    python architectures/mt5.py     # prints the sizes, and takes one training step with a tiny one

Source: Xue et al. 2021, https://arxiv.org/abs/2010.11934.
"""

import dataclasses

import t5_1_1
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from gallery import Page, show

SIZES = {
    name: size if name == "tiny" else dataclasses.replace(size, vocabulary=250112)
    for name, size in t5_1_1.SIZES.items()
}


def mt5(size: t5_1_1.Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return t5_1_1.t5_1_1(size, dropout_rate, dtype)


PAGE = Page("mt5", SIZES, mt5, t5_1_1.example, t5_1_1.loss)

if __name__ == "__main__":
    show(PAGE)
