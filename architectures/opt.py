"""OPT: GPT-2 with ReLU, and with positions that count valid tokens, behind two unused rows. As `gin/opt/`.

    tokens, positions -> embed -> 12 x [attend to what came before, MLP] -> norm -> logits by the token table

    python architectures/opt.py     # prints the sizes, and takes one training step with a tiny one

Source: Zhang et al. 2022, https://arxiv.org/abs/2205.01068.
"""

import dataclasses

import gpt2
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.positions.numbering import CountValid
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(gpt2.Size):
    vocabulary: int = 50272
    positions: int = 2048  # without the rows in front

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "125M": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "1.3B": Size(layers=24, heads=32, width=2048, mlp_width=8192),
    "2.7B": Size(layers=32, heads=32, width=2560, mlp_width=10240),
    "6.7B": Size(layers=32, heads=32, width=4096, mlp_width=16384),
    "13B": Size(layers=40, heads=40, width=5120, mlp_width=20480),
    "30B": Size(layers=48, heads=56, width=7168, mlp_width=28672),
    "66B": Size(layers=64, heads=72, width=9216, mlp_width=36864),
}


def opt(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `gpt2.gpt2`."""
    return gpt2.gpt2(size, 0.0, dtype, activation="relu", position_offset=2, number_tokens=CountValid())


PAGE = Page("opt", SIZES, opt, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
