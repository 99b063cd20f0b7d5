"""Qwen3: Llama with norms on the heads of queries and keys. As `gin/qwen3/`.

Against Qwen2 it has these in place of biases. Positions rotate slower than Llama's, for longer texts; the smaller ones
score by the token table.

    python architectures/qwen3.py     # prints the sizes, and takes one training step with a tiny one

Source: Yang et al. 2025, https://arxiv.org/abs/2505.09388.
"""

import dataclasses

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import T5LayerNorm
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    vocabulary: int = 151936
    rotary_timescale: float = 1000000.0


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=16, width=32, mlp_width=64, vocabulary=512),
    "0.6B": Size(layers=28, heads=16, kv_heads=8, head_dim=128, width=1024, mlp_width=3072, tied=True),
    "8B": Size(layers=36, heads=32, kv_heads=8, head_dim=128, width=4096, mlp_width=12288),
}


def qwen3(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(size, dtype, head_norm=T5LayerNorm)


PAGE = Page("qwen3", SIZES, qwen3, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
