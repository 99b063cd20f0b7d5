"""DistilBERT: BERT of half the depth, without token types, which learned from a BERT. As `gin/distilbert/`.

    tokens, positions -> embed -> norm -> 6 x [attend to all, norm, MLP, norm] -> what the hidden tokens were

    python architectures/distilbert.py     # prints the sizes, and takes one training step with a tiny one

Source: Sanh et al. 2019, https://arxiv.org/abs/1910.01108.
"""

import bert
from bert import Size, example_of_masked, loss_of_masked
from flaxformer.architectures.heads import EncoderWithHeads
from gallery import Page, show

SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512),
    "base": Size(layers=6, heads=12, width=768, mlp_width=3072),
}


def distilbert(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model; see `bert.bert`."""
    return bert.bert(size, dropout_rate, dtype, token_types=0, heads=[bert.masked_lm])


PAGE = Page("distilbert", SIZES, distilbert, example_of_masked, loss_of_masked)

if __name__ == "__main__":
    show(PAGE)
