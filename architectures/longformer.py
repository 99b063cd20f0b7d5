"""Longformer: RoBERTa for long documents, whose tokens see a window. As `gin/longformer/`.

    tokens, positions -> embed -> norm -> 12 x [attend to 256 on either side and to global ones, norm, MLP, norm]
    -> what the hidden tokens were

Global tokens, which a call names, see all and are seen by all, through projections of their own.

    python architectures/longformer.py     # prints the sizes, and takes one training step with a tiny one

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150.
"""

import dataclasses
import functools

import jax.numpy as jnp

import roberta
from bert import loss_of_masked, masked
from flaxformer.architectures.heads import EncoderWithHeads
from flaxformer.components.attention.longformer_attention import LongformerAttention
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(roberta.Size):
    positions: int = 4096
    window: int = 256  # on either side


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512, positions=512, window=4),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}


def longformer(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model; see `roberta.roberta` and `bert.bert`."""
    attention = functools.partial(LongformerAttention, window=size.window)
    return roberta.roberta(size, dropout_rate, dtype, attention_layer=attention)


def example(size: Size) -> tuple[tuple, dict]:
    """Rows whose first token is global."""
    tokens, _, _ = masked(size.vocabulary)
    return (tokens,), {"global_tokens": jnp.broadcast_to(jnp.arange(tokens.shape[1]) == 0, tokens.shape)}


PAGE = Page("longformer", SIZES, longformer, example, loss_of_masked)

if __name__ == "__main__":
    show(PAGE)
