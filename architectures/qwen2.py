"""Qwen2: Llama with biases on query, key and value. As `gin/qwen2/`.

Positions rotate slower, for longer texts; the smaller ones score by the token table.

    python architectures/qwen2.py     # prints the sizes, and takes one training step with a tiny one

Source: Yang et al. 2024, https://arxiv.org/abs/2407.10671.
"""

import dataclasses

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    vocabulary: int = 151936
    rotary_timescale: float = 1000000.0


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "0.5B": Size(layers=24, heads=14, kv_heads=2, head_dim=64, width=896, mlp_width=4864, tied=True),
    "1.5B": Size(layers=28, heads=12, kv_heads=2, head_dim=128, width=1536, mlp_width=8960, tied=True),
    "7B": Size(layers=28, heads=28, kv_heads=4, head_dim=128, width=3584, mlp_width=18944, vocabulary=152064),
}


def qwen2(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(size, dtype, biased=("query", "key", "value"))


PAGE = Page("qwen2", SIZES, qwen2, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
