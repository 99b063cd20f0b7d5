"""Gemma: Llama with norms that store their scale minus one, embeddings times √width, a gated GELU. As `gin/gemma/`.

    tokens -> embed, times √width -> 18 x [attend to what came before, MLP] -> norm -> logits by the token table

    python architectures/gemma.py     # prints the sizes, and takes one training step with a tiny one

Source: Gemma Team 2024, https://arxiv.org/abs/2403.08295.
"""

import dataclasses
import functools
from typing import Any

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import T5LayerNorm
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    vocabulary: int = 256000
    tied: bool = True

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=1, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "2B": Size(layers=18, heads=8, kv_heads=1, head_dim=256, width=2048, mlp_width=16384),
    "7B": Size(layers=28, heads=16, kv_heads=16, head_dim=256, width=3072, mlp_width=24576),
}
norm = functools.partial(T5LayerNorm, center_scale_at_zero=True)


def gemma(size: Size, dtype: str = "float32", **differences: Any) -> DecoderOnly:
    """The model; later ones add differences of their own from `llama.llama`."""
    return llama.llama(
        size,
        dtype,
        norm=norm,
        activations=("gelu", "linear"),  # its approximation by tanh
        embedding_scale=size.embedding_scale,
        **differences,
    )


PAGE = Page("gemma", SIZES, gemma, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
