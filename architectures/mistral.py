"""Mistral: Llama whose queries see a window of 4096 tokens, their own and those before it. As `gin/mistral/`.

    tokens -> embed -> 32 x [attend to the last 4096, MLP] -> norm -> logits

    python architectures/mistral.py     # prints the sizes, and takes one training step with a tiny one

Source: Jiang et al. 2023, https://arxiv.org/abs/2310.06825.
"""

import dataclasses

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.attention.masks import Window
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    norm_epsilon: float = 1e-5
    window: int = 4095  # before a token's own


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "7B": Size(layers=32, heads=32, kv_heads=8, head_dim=128, width=4096, mlp_width=14336),
}


def mistral(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return llama.llama(size, dtype, sights=[llama.Sight(llama.rotary(size), Window(left=size.window))])


PAGE = Page("mistral", SIZES, mistral, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
