"""Gemma 3, its text decoder: Gemma 2 without bounds, with norms on the heads of queries and keys. As `gin/gemma3/`.

    tokens -> embed, times √width -> 26 layers, of which every sixth attends to all before, and others to the last 512

Those others rotate positions faster than the full ones, which are made for long texts.

    python architectures/gemma3.py     # prints the sizes, and takes one training step with a tiny one

Source: Gemma Team 2025, https://arxiv.org/abs/2503.19786.
"""

import dataclasses

import gemma
import gemma2
from flaxformer.architectures.arrangements import SandwichDecoderLayer
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.attention.masks import Window
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.positions.rotary import Rotary
from gallery import Page, continuation, loss_of_continuation, show
from llama import Sight, rotary


@dataclasses.dataclass(frozen=True)
class Size(gemma2.Size):
    vocabulary: int = 262144
    window: int = 511
    rotary_timescale: float = 1000000.0
    sliding_rotary_timescale: float = 10000.0


SIZES = {
    "tiny": Size(layers=6, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "1B": Size(layers=26, heads=4, kv_heads=1, head_dim=256, width=1152, mlp_width=6912),
}


def gemma3(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""
    near = Sight(Rotary(max_timescale=size.sliding_rotary_timescale), Window(left=size.window))
    return gemma.gemma(
        size,
        dtype,
        sights=[*[near] * 5, Sight(rotary(size))],
        layer=SandwichDecoderLayer,
        head_norm=gemma.norm,
        attention_fn=Attend(scale=size.scores_scale),
        rescale_logits=False,  # that is what the scale is for
    )


PAGE = Page("gemma3", SIZES, gemma3, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
