"""BigBird: BERT for long documents, whose tokens see blocks near their own, the first and the last. As `gin/big_bird/`.

    tokens, positions, types -> embed -> norm -> 12 x [attend between blocks of 64, norm, MLP, norm] -> BERT's heads

GELU is its approximation by tanh.

    python architectures/big_bird.py     # prints the sizes, and takes one training step with a tiny one

Source: Zaheer et al. 2020, https://arxiv.org/abs/2007.14062.
"""

import dataclasses
import functools

import bert
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.attention.big_bird_attention import BigBirdAttention
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bert.Size):
    vocabulary: int = 50358
    positions: int = 4096
    block_size: int = 64
    random_blocks: int = 3  # as many as these are left out of the training's pattern, see BigBirdAttention


SIZES = {
    "tiny": Size(2, 4, width=32, mlp_width=64, vocabulary=512, positions=512, block_size=4, random_blocks=1),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}


def big_bird(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model; see `bert.bert`."""
    attention = functools.partial(
        BigBirdAttention, block_size=size.block_size, random_blocks=size.random_blocks, rescale_logits=True
    )
    return bert.bert(size, dropout_rate, dtype, attention_layer=attention, activation="gelu")


PAGE = Page("big_bird", SIZES, big_bird, bert.example, bert.loss)

if __name__ == "__main__":
    show(PAGE)
