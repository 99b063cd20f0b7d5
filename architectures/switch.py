"""Switch Transformers: T5 1.0 whose every second layer has many MLPs, one for each token. As `gin/switch/`.

    tokens -> embed -> 6 x [attend, MLP, attend, one of 128 MLPs] -> norm                       encoder

and so in the decoder. A router, one matrix, scores the MLPs for each token; the best one's output counts as much as its
share of the softmax of all scores. An MLP takes 64 tokens of a row at most, in their order; others pass it by.

    python architectures/switch.py     # prints the sizes, and takes one training step with a tiny one

Source: Fedus et al. 2021, https://arxiv.org/abs/2101.03961.
"""

import dataclasses

import flax.linen as nn

import t5_1_1
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components.mixture import MixtureOfExperts
from gallery import Page, show


@dataclasses.dataclass(frozen=True)
class Size(t5_1_1.Size):
    experts: int = 128
    capacity: int = 64
    jitter: float = 0.01


SIZES = {
    "tiny": Size(layers=2, heads=4, head_dim=8, width=32, mlp_width=64, vocabulary=512, experts=4),
    "base_8": Size(layers=12, heads=12, head_dim=64, width=768, mlp_width=3072, experts=8),
    "base_128": Size(layers=12, heads=12, head_dim=64, width=768, mlp_width=3072),
    "large_128": Size(layers=24, heads=16, head_dim=64, width=1024, mlp_width=4096),
}


def switch(size: Size, dropout_rate: float = 0.0, dtype: str = "bfloat16") -> EncoderDecoder:
    """The model: parameters in float32, computing in `dtype`, routers and logits in float32."""

    def experts():
        return MixtureOfExperts(
            num_experts=size.experts,
            intermediate_dim=size.mlp_width,
            capacity=size.capacity,
            activations=("relu",),
            jitter=size.jitter,
            intermediate_dropout_rate=dropout_rate,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
            dtype=dtype,
        )

    return t5_1_1.t5_1_1(size, dropout_rate, dtype, activations=("relu",), head=None, other_mlps=(experts,))


PAGE = Page("switch", SIZES, switch, t5_1_1.example, t5_1_1.loss)

if __name__ == "__main__":
    show(PAGE)
