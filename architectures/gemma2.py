"""Gemma 2: Gemma with a norm behind every branch too, bounded scores and logits, a window in every other layer.

    tokens -> embed, times √width -> 13 x [attend to the last 4096, MLP, attend to all before, MLP] -> norm -> logits
    where each branch is x + norm(branch(norm x))

The same model as `gin/gemma2/`.

    python architectures/gemma2.py     # prints the sizes, and takes one training step with a tiny one

Source: Gemma Team 2024, https://arxiv.org/abs/2408.00118.
"""

import dataclasses

import gemma
from flaxformer.architectures.arrangements import SandwichDecoderLayer
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.attention.masks import Window
from flaxformer.components.attention.variants.attend import Attend
from gallery import Page, continuation, loss_of_continuation, show
from llama import Sight, rotary


@dataclasses.dataclass(frozen=True)
class Size(gemma.Size):
    window: int = 4095  # before a token's own
    scores_scale: float = 0.0625  # 1/√head_dim, but for the largest


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "2B": Size(layers=26, heads=8, kv_heads=4, head_dim=256, width=2304, mlp_width=9216),
    "9B": Size(layers=42, heads=16, kv_heads=8, head_dim=256, width=3584, mlp_width=14336),
    "27B": Size(46, heads=32, kv_heads=16, head_dim=128, width=4608, mlp_width=36864, scores_scale=144**-0.5),
}


def gemma2(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    return gemma.gemma(
        size,
        dtype,
        sights=[Sight(rotary(size), Window(left=size.window)), Sight(rotary(size))],
        layer=SandwichDecoderLayer,
        attention_fn=Attend(scale=size.scores_scale, softcap=50.0),
        rescale_logits=False,  # that is what the scale is for
        logits_cap=30.0,
    )


PAGE = Page("gemma2", SIZES, gemma2, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
