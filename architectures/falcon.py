"""Falcon: Llama whose attention and MLP stand side by side behind one norm, with one key/value head. As `gin/falcon/`.

    tokens -> embed -> 32 x [x + attend(norm x) + MLP(norm x)] -> norm -> logits by the token table

Norms centre and have a bias, nothing else has one; the MLP is not gated. Against Phi it has no other biases, and all
heads of queries read the same keys.

    python architectures/falcon.py     # prints the sizes, and takes one training step with a tiny one

Source: Almazrouei et al. 2023, https://arxiv.org/abs/2311.16867.
"""

import dataclasses

import llama
from flaxformer.architectures.arrangements import ParallelDecoderLayer
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    vocabulary: int = 65024
    norm_epsilon: float = 1e-5
    tied: bool = True


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=1, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "7B": Size(layers=32, heads=71, kv_heads=1, head_dim=64, width=4544, mlp_width=18176),
}


def falcon(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(size, dtype, layer=ParallelDecoderLayer, norm=LayerNorm, activations=("gelu_exact",))


PAGE = Page("falcon", SIZES, falcon, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
