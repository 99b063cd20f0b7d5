"""ALBERT: BERT with one layer that runs twelve times, and embeddings that are narrower and projected. As `gin/albert/`.

    tokens, positions, types -> embed -> norm -> wider -> 12 x one [attend to all, norm, MLP, norm] -> hidden states
    hidden states -> masked_lm: what the hidden tokens were
                  -> pooled, from the first token -> next_sentence: here, which of the two came first

    python architectures/albert.py     # prints the sizes, and takes one training step with a tiny one

Source: Lan et al. 2020, https://arxiv.org/abs/1909.11942.
"""

import dataclasses

import bert
from flaxformer.architectures.heads import EncoderWithHeads
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bert.Size):
    layers: int  # that differ
    vocabulary: int = 30000
    token_width: int = 128
    layer_order: tuple[int, ...] = 12 * (0,)  # which of them runs when


SIZES = {
    "tiny": Size(layers=1, heads=4, width=32, mlp_width=64, vocabulary=512, token_width=16, layer_order=(0, 0)),
    "base": Size(layers=1, heads=12, width=768, mlp_width=3072),
}


def albert(size: Size, dropout_rate: float = 0.0, dtype: str = "float32") -> EncoderWithHeads:
    """The model; see `bert.bert`."""
    tanh_gelu = "gelu"
    return bert.bert(size, dropout_rate, dtype, activation=tanh_gelu, layer_order=size.layer_order)


PAGE = Page("albert", SIZES, albert, bert.example, bert.loss)

if __name__ == "__main__":
    show(PAGE)
