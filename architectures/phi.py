"""Phi: Llama whose attention and MLP stand side by side, behind one norm. As `gin/phi/`.

    tokens -> embed -> 32 x [x + attend(norm x) + MLP(norm x)] -> norm -> logits

Norms centre; everything has a bias, the logits too; the MLP is not gated; positions rotate part of each head. Against
GPT-NeoX, its nearest relative, the branches share their norm.

    python architectures/phi.py     # prints the sizes, and takes one training step with a tiny one

Source: Gunasekar et al. 2023, https://arxiv.org/abs/2306.11644; Phi-2.
"""

import dataclasses

import llama
from flaxformer.architectures.arrangements import ParallelDecoderLayer
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    norm_epsilon: float = 1e-5
    rotary_fraction: float = 0.4


SIZES = {
    "tiny": Size(2, 4, 4, head_dim=8, width=32, mlp_width=64, vocabulary=512, rotary_fraction=0.5),
    "2": Size(layers=32, heads=32, kv_heads=32, head_dim=80, width=2560, mlp_width=10240, vocabulary=51200),
}


def phi(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(
        size,
        dtype,
        sights=[llama.Sight(llama.rotary(size, fraction=size.rotary_fraction))],
        layer=ParallelDecoderLayer,
        norm=LayerNorm,
        activations=("gelu",),  # its approximation by tanh
        biased=("query", "key", "value", "out"),
        mlp_bias=True,
        logits_bias=True,
    )


PAGE = Page("phi", SIZES, phi, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
