"""T5 1.0: the page of T5 1.1, but for the MLP and the head. The same model as `gin/t5_1_0/`.

The MLP is relu(x·W0)·W1, without a gate; and logits are products with the token table, of states divided by √D.

    python architectures/t5_1_0.py     # prints the sizes, and takes one training step with a tiny one

Source: Raffel et al. 2020, https://arxiv.org/abs/1910.10683.
"""

from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from gallery import Page, show
from t5_1_1 import Size, example, loss, t5_1_1

SIZES = {
    "tiny": Size(layers=2, heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512),
    "small": Size(layers=6, heads=8, head_dim=64, width=512, mlp_width=2048),
    "base": Size(layers=12, heads=12, head_dim=64, width=768, mlp_width=3072),
    "large": Size(layers=24, heads=16, head_dim=64, width=1024, mlp_width=4096),
    "3B": Size(layers=24, heads=32, head_dim=128, width=1024, mlp_width=16384),
    "11B": Size(layers=24, heads=128, head_dim=128, width=1024, mlp_width=65536),
}


def t5_1_0(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, logits in float32."""
    return t5_1_1(size, dropout_rate, dtype, activations=("relu",), head=None)


PAGE = Page("t5_1_0", SIZES, t5_1_0, example, loss)

if __name__ == "__main__":
    show(PAGE)
