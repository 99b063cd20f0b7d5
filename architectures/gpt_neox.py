"""GPT-NeoX and Pythia: Llama whose attention and MLP stand side by side, each behind a norm of its own.

    tokens -> embed -> 44 x [x + attend(norm x) + MLP(norm' x)] -> norm -> logits

Norms centre and have a bias, and so do the layers' dense ones; the MLP is not gated; positions rotate a quarter of each
head. The same model as `gin/gpt_neox/`.

    python architectures/gpt_neox.py     # prints the sizes, and takes one training step with a tiny one

Source: Black et al. 2022, https://arxiv.org/abs/2204.06745; Biderman et al. 2023, https://arxiv.org/abs/2304.01373.
"""

import dataclasses
import functools

import llama
from flaxformer.architectures.arrangements import ParallelDecoderLayer
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    norm_epsilon: float = 1e-5
    activations: tuple[str, ...] = ("gelu_exact",)


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "pythia_160M": Size(12, heads=12, kv_heads=12, head_dim=64, width=768, mlp_width=3072, vocabulary=50304),
    "pythia_1.4B": Size(24, heads=16, kv_heads=16, head_dim=128, width=2048, mlp_width=8192, vocabulary=50304),
    "pythia_6.9B": Size(32, heads=32, kv_heads=32, head_dim=128, width=4096, mlp_width=16384, vocabulary=50432),
    "20B": Size(44, 64, 64, head_dim=96, width=6144, mlp_width=24576, vocabulary=50432, activations=("gelu",)),
}


def gpt_neox(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(
        size,
        dtype,
        sights=[llama.Sight(llama.rotary(size, fraction=0.25))],
        layer=functools.partial(ParallelDecoderLayer, own_mlp_norm=True),
        norm=LayerNorm,
        activations=size.activations,
        biased=("query", "key", "value", "out"),
        mlp_bias=True,
    )


PAGE = Page("gpt_neox", SIZES, gpt_neox, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
