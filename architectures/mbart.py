"""mBART: the page of BART, but for where its norms are. The same model as `gin/mbart/`.

Norms come before each branch, and one more behind each stack; the one on the sum of the embeddings stays. Embeddings
are multiplied by √D, the vocabulary is that of many languages, and the MLP of the later release is a ReLU.

    python architectures/mbart.py     # prints the sizes, and takes one training step with a tiny one

Source: Liu et al. 2020, https://arxiv.org/abs/2001.08210; mBART-50: Tang et al. 2020, https://arxiv.org/abs/2008.00401.
"""

import dataclasses

import bart
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder, PreNorm
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(bart.Size):
    vocabulary: int = 250027
    activation: str = "gelu_exact"

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5


SIZES = {
    "tiny": Size(layers=2, heads=4, width=64, mlp_width=64, vocabulary=512),
    "large": Size(layers=12, heads=16, width=1024, mlp_width=4096),
    "large50": Size(layers=12, heads=16, width=1024, mlp_width=4096, vocabulary=250054, activation="relu"),
}


def mbart(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return bart.bart(
        size,
        dropout_rate,
        dtype,
        activation=size.activation,
        embedding_scale=size.embedding_scale,
        residual=PreNorm,
        final_norm=LayerNorm,
    )


PAGE = Page("mbart", SIZES, mbart, bart.example, bart.loss)

if __name__ == "__main__":
    show(PAGE)
