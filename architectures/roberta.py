"""RoBERTa and XLM-R: BERT with positions that count real tokens only, one token type, and one task. As `gin/roberta/`.

    tokens, positions, one type -> embed -> norm -> 12 x [attend to all, norm, MLP, norm] -> what the hidden tokens were

Padding is 1, and positions begin behind it: their table has two rows in front.

    python architectures/roberta.py     # prints the sizes, and takes one training step with a tiny one

Source: Liu et al. 2019, https://arxiv.org/abs/1907.11692.
"""

import dataclasses
import functools
from typing import Any

import bert
from bert import example_of_masked, loss_of_masked
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.embedding import PositionEmbed
from flaxformer.components.positions.numbering import CountTokens
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bert.Size):
    vocabulary: int = 50265
    positions: int = 512  # without the rows in front


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}
PADDING = 1


def roberta(size: Size, dropout_rate: float = 0.1, dtype: str = "float32", **differences: Any) -> EncoderWithHeads:
    """The model; later ones add differences of their own from `bert.bert`."""
    return bert.bert(
        size,
        dropout_rate,
        dtype,
        norm_epsilon=1e-5,
        position_table=functools.partial(PositionEmbed, offset=2),
        number_tokens=CountTokens(padding_id=PADDING),
        token_types=1,
        heads=[bert.masked_lm],
        padding=PADDING,
        **differences,
    )


PAGE = Page("roberta", SIZES, roberta, example_of_masked, loss_of_masked)

if __name__ == "__main__":
    show(PAGE)
