"""wav2vec 2.0 as larger models of speech have it: the page of wav2vec 2.0, but for where norms stand.

    wave -> 7 x [convolution with a bias, norm] -> norm -> project
    -> + a convolution of the neighbours -> 24 x [attend to all, MLP] -> norm -> hidden states -> ctc

Norms come before each branch, and one behind the last layer, none before the first; and there is one behind every
convolution, over the channels of a frame, where `wav2vec2` has one behind the first, over the length. What is padded
then changes nothing.

    python architectures/wav2vec2_stable.py     # prints the sizes, and takes one training step with a tiny one

Source: Baevski et al. 2020, https://arxiv.org/abs/2006.11477; Conneau et al. 2020, https://arxiv.org/abs/2006.13979.
"""

from flaxformer.architectures.t5.t5_architecture import PreNorm
from flaxformer.architectures.waveforms import WaveEncoder
from flaxformer.components.layer_norm import LayerNorm
from gallery import Page, show
from wav2vec2 import TINY, Size, example, loss, wav2vec2

SIZES = {
    "tiny": TINY,
    "large": Size(layers=24, heads=16, width=1024, mlp_width=4096),
}


def wav2vec2_stable(size: Size, dropout_rate: float = 0.1, dtype: str = "float32") -> WaveEncoder:
    """The model with a head for CTC: parameters in float32, computing in `dtype`."""
    return wav2vec2(
        size,
        dropout_rate,
        dtype,
        feature_bias=True,
        first_feature_norm=LayerNorm,
        feature_norm=LayerNorm,
        residual=PreNorm,
        first_norm=None,
        final_norm=LayerNorm,
    )


PAGE = Page("wav2vec2_stable", SIZES, wav2vec2_stable, example, loss)

if __name__ == "__main__":
    show(PAGE)
