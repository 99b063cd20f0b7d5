"""LED: the page of BART, for long documents. The same model as `gin/led/`.

A token of the encoder sees 512 others on either side. Global ones, which a call names, see all and are seen by all, and
have projections of their own for that. Positions have no rows in front.

    python architectures/led.py     # prints the sizes, and takes one training step with a tiny one

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

import bart
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components.attention.longformer_attention import LongformerAttention
from flaxformer.components.embedding import PositionEmbed
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bart.Size):
    positions: int = 16384  # of the encoder
    decoder_positions: int = 1024
    window: int = 512  # on either side


_TINY = {"positions": 64, "decoder_positions": 64, "window": 4, "vocabulary": 512}
SIZES = {
    "tiny": Size(layers=2, heads=4, width=32, mlp_width=64, **_TINY),
    "base": Size(layers=6, heads=12, width=768, mlp_width=3072),
    "large": Size(layers=12, heads=16, width=1024, mlp_width=4096),
}


def led(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""

    def table(rows):
        return lambda size: PositionEmbed(rows, size.width, embedding_init=bart.KERNEL_INIT)

    return bart.bart(
        size,
        dropout_rate,
        dtype,
        encoder_positions=table(size.positions),
        decoder_positions=table(size.decoder_positions),
        encoder_attention=functools.partial(LongformerAttention, window=size.window),
    )


def example(size: Size) -> tuple[tuple, dict[str, Any]]:
    """BART's; the first token of each row is global."""
    arguments, options = bart.example(size)
    return arguments, {**options, "global_tokens": jnp.zeros_like(arguments[0]).at[:, 0].set(1)}


PAGE = Page("led", SIZES, led, example, bart.loss)

if __name__ == "__main__":
    show(PAGE)
