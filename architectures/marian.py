"""Marian, as OPUS-MT has it: the page of BART, but for the embeddings. The same model as `gin/marian/`.

Embeddings are multiplied by √D and have no norm; positions are sinusoids, all sines before all cosines, which are no
parameters. The MLP is a Swish, and the last token is padding.

    python architectures/marian.py     # prints the sizes, and takes one training step with a tiny one

Source: Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344.
"""

import dataclasses

import bart
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components.embedding import FixedEmbed
from flaxformer.components.initializers import sinusoidal
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bart.Size):
    vocabulary: int = 58101  # of English to German
    positions: int = 512

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5

    @property
    def padding_id(self) -> int:
        return self.vocabulary - 1


SIZES = {
    "tiny": Size(layers=2, heads=4, width=64, mlp_width=64, vocabulary=512),
    "base": Size(layers=6, heads=8, width=512, mlp_width=2048),
}


def positions(size: bart.Size) -> FixedEmbed:
    return FixedEmbed(size.width, max_length=size.positions, embedding_init=sinusoidal(reach_last=False))


def marian(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return bart.bart(
        size,
        dropout_rate,
        dtype,
        activation="silu",
        padding=size.padding_id,
        embedding_scale=size.embedding_scale,
        encoder_positions=positions,
        decoder_positions=positions,
        embedding_norm=None,
    )


PAGE = Page("marian", SIZES, marian, bart.example, bart.loss)

if __name__ == "__main__":
    show(PAGE)
