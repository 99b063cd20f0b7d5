"""Mixtral: Llama with 8 MLPs in each layer, of which every token passes through two. As `gin/mixtral/`.

    tokens -> embed -> 32 x [attend, the best 2 of 8 MLPs] -> norm -> logits

A router, one matrix, scores the MLPs for each token; the outputs of the best two are added, weighed by the softmax of
their two scores.

    python architectures/mixtral.py     # prints the sizes, and takes one training step with a tiny one

Source: Jiang et al. 2024, https://arxiv.org/abs/2401.04088.
"""

import dataclasses

import flax.linen as nn

import llama
from flaxformer.architectures.t5.t5_architecture import DecoderOnly
from flaxformer.components.mixture import MixtureOfExperts, gates_of_chosen
from gallery import Page, continuation, loss_of_continuation, show


@dataclasses.dataclass(frozen=True)
class Size(llama.Size):
    norm_epsilon: float = 1e-5
    rotary_timescale: float = 1000000.0
    experts: int = 8
    selected: int = 2


SIZES = {
    "tiny": Size(layers=2, heads=4, kv_heads=2, head_dim=8, width=32, mlp_width=64, vocabulary=512, experts=4),
    "8x7B": Size(layers=32, heads=32, kv_heads=8, head_dim=128, width=4096, mlp_width=14336),
    "8x22B": Size(layers=56, heads=48, kv_heads=8, head_dim=128, width=6144, mlp_width=16384, vocabulary=32768),
}


def mixtral(size: Size, dtype: str = "float32") -> DecoderOnly:
    """The model; see `llama.llama`."""

    def experts():
        return MixtureOfExperts(
            num_experts=size.experts,
            intermediate_dim=size.mlp_width,
            num_selected=size.selected,
            gates=gates_of_chosen,
            activations=("silu", "linear"),
            kernel_init=nn.initializers.normal(0.02),
            router_init=nn.initializers.normal(0.02),
            dtype=dtype,
        )

    return llama.llama(size, dtype, make_mlp=experts)


PAGE = Page("mixtral", SIZES, mixtral, continuation, loss_of_continuation)

if __name__ == "__main__":
    show(PAGE)
