"""DeBERTa v2 and v3: BERT whose attention knows distances by content, and nothing else positions. As `gin/deberta/`.

    tokens -> embed -> norm -> 12 x [attend to all, norm, MLP, norm] -> what the hidden tokens were
    distances -> one table, with a norm -> the attention of every layer

A score is what a query says to a key, to the distance between them, and what that says to the key. Distances beyond
some share rows of the table. There are no token types.

    python architectures/deberta.py     # prints the sizes, and takes one training step with a tiny one

Source: He et al. 2020, https://arxiv.org/abs/2006.03654; 2021, https://arxiv.org/abs/2111.09543.
"""

import dataclasses
import functools

import bert
from bert import example_of_masked, loss_of_masked
from flaxformer.architectures.disentangled import DisentangledEncoder
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.attention.disentangled_attention import DisentangledAttention
from flaxformer.components.layer_norm import LayerNorm
from flaxformer.components.positions.disentangled import DistanceTable
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bert.Size):
    vocabulary: int = 128100
    buckets: int = 256  # of distances, in each direction
    max_distance: int = 512


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512, buckets=8, max_distance=32),
    "v3_base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "v3_large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}
EPSILON = 1e-7


def deberta(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model; see `bert.bert`."""

    def distances():
        norm = LayerNorm(epsilon=EPSILON, dtype=dtype)
        return DistanceTable(size.buckets, size.width, norm, embedding_init=bert.KERNEL_INIT, dtype=dtype)

    attention = functools.partial(
        DisentangledAttention,
        max_distance=size.max_distance,
        share_projections=True,  # distances are projected as content is
        content_to_position=True,
        position_to_content=True,
    )
    return bert.bert(
        size,
        dropout_rate,
        dtype,
        attention_layer=attention,
        norm_epsilon=EPSILON,
        position_table=None,
        token_types=0,
        stack=functools.partial(DisentangledEncoder, distances_factory=distances),
        heads=[bert.masked_lm],
    )


PAGE = Page("deberta", SIZES, deberta, example_of_masked, loss_of_masked)

if __name__ == "__main__":
    show(PAGE)
