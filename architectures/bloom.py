"""BLOOM: Llama that knows positions by penalties on distant keys, with a norm on the embeddings. As `gin/bloom/`.

    tokens -> embed -> norm -> 24 x [attend to what came before, MLP] -> norm -> logits by the token table

The penalty grows with the distance, at a slope of each head's own, and nothing of it is learned. Norms centre,
everything has a bias, and the MLP is not gated.

    python architectures/bloom.py     # prints the sizes, and takes one training step with a tiny one

Source: Scao et al. 2022, https://arxiv.org/abs/2211.05100; Press et al. 2021, https://arxiv.org/abs/2108.12409.
"""

import dataclasses

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.positions.alibi import Alibi
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    vocabulary: int = 250880
    norm_epsilon: float = 1e-5
    tied: bool = True


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "560M": Size(layers=24, heads=16, kv_heads=16, head_dim=64, width=1024, mlp_width=4096),
    "7B1": Size(layers=30, heads=32, kv_heads=32, head_dim=128, width=4096, mlp_width=16384),
}


def bloom(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(
        size,
        dtype,
        sights=[llama.Sight(Alibi(size.heads))],
        norm=LayerNorm,
        embedding_norm=LayerNorm,
        activations=("gelu",),  # its approximation by tanh
        biased=("query", "key", "value", "out"),
        mlp_bias=True,
    )


PAGE = Page("bloom", SIZES, bloom, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
