"""ELECTRA: a BERT that tells replaced tokens from real ones. As `gin/electra/`.

    tokens, positions, types -> embed -> norm, wider where needed -> 12 x [attend to all, norm, MLP, norm]
    -> whether each token was replaced

What replaces tokens is a small masked language model beside it. The embeddings of the smaller ones are narrower than
their layers.

    python architectures/electra.py     # prints the sizes, and takes one training step with a tiny one

Source: Clark et al. 2020, https://arxiv.org/abs/2003.10555.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bert
from flaxformer.architectures.heads import EncoderWithHeads, TokenDetector
from gallery import Page, show, text


@dataclasses.dataclass(frozen=True)
class Size(bert.Size):
    token_width: int = 128

    @property
    def projected(self) -> bool:
        return self.token_width != self.width


SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, vocabulary=512, token_width=16),
    "small": Size(layers=12, heads=4, width=256, mlp_width=1024),
    "base": Size(layers=12, heads=12, width=768, mlp_width=3072, token_width=768),
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096, token_width=1024),
}


def replaced(parts: bert.Parts) -> tuple[str, Callable[[], nn.Module]]:
    return "replaced", lambda: TokenDetector(parts.size.width, parts.activation, dtype=parts.dtype)


def electra(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderWithHeads:
    """The model that detects; see `bert.bert`, which with `[bert.masked_lm]` for heads is the one that replaces."""
    return bert.bert(size, dropout_rate, dtype, heads=[replaced])


def example(size: Size) -> tuple[tuple, dict]:
    """Rows in which every third token was replaced."""
    tokens, others = text(size.vocabulary), text(size.vocabulary, seed=1)  # [B T] x 2
    return (jnp.where(jnp.arange(tokens.shape[1]) % 3 == 1, others, tokens),), {}


def loss(outputs: dict[str, jax.Array]) -> jax.Array:
    """Whether each token of the example was."""
    scores = outputs["replaced"]  # [B T]
    truth = jnp.broadcast_to(jnp.arange(scores.shape[1]) % 3 == 1, scores.shape)
    return optax.sigmoid_binary_cross_entropy(scores, truth).mean()


PAGE = Page("electra", SIZES, electra, example, loss)

if __name__ == "__main__":
    show(PAGE)
