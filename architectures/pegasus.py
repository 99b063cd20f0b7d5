"""Pegasus: the page of BART, but for norms and positions. The same model as `gin/pegasus/`.

Norms come before each branch, and one more behind each stack, none on the embeddings. These are multiplied by √D;
positions have no rows in front, and are sinusoids in published files, all sines before all cosines. The MLP is a ReLU.

    python architectures/pegasus.py     # prints the sizes, and takes one training step with a tiny one

Source: Zhang et al. 2020, https://arxiv.org/abs/1912.08777.
"""

import dataclasses

import bart
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder, PreNorm
from flaxformer.components.embedding import PositionEmbed
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bart.Size):
    vocabulary: int = 96103

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5


SIZES = {
    "tiny": Size(layers=2, heads=4, width=64, mlp_width=64, vocabulary=512),
    "large": Size(layers=16, heads=16, width=1024, mlp_width=4096),
}


def positions(size: bart.Size) -> PositionEmbed:
    return PositionEmbed(size.positions, size.width, embedding_init=bart.KERNEL_INIT)


def pegasus(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return bart.bart(
        size,
        dropout_rate,
        dtype,
        activation="relu",
        padding=0,
        embedding_scale=size.embedding_scale,
        encoder_positions=positions,
        decoder_positions=positions,
        embedding_norm=None,
        residual=PreNorm,
        final_norm=LayerNorm,
    )


PAGE = Page("pegasus", SIZES, pegasus, bart.example, bart.loss)

if __name__ == "__main__":
    show(PAGE)
