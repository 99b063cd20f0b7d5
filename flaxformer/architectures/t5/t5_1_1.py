"""T5 1.1: gated GELU and a logits projection of its own. Source: Shazeer 2020, arXiv:2002.05202."""

import dataclasses

import jax.numpy as jnp

from flaxformer.architectures.t5 import t5_common_layers
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.components import dense
from flaxformer.types import DType

DROPOUT_RATE = 0.0
ACTIVATIONS = ("gelu", "linear")
HEAD_DIM = 64
VOCAB_SIZE = 32128


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes that differ between the published models; `encoder_decoder(**dataclasses.asdict(config))`."""

    embedding_dim: int
    mlp_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int


SMALL_CONFIG = Config(512, 1024, 6, 8, 8)
BASE_CONFIG = Config(768, 2048, 12, 12, 12)
LARGE_CONFIG = Config(1024, 2816, 16, 24, 24)
XL_CONFIG = Config(2048, 5120, 32, 24, 24)
XXL_CONFIG = Config(4096, 10240, 64, 24, 24)


def encoder_decoder(
    embedding_dim: int,
    mlp_dim: int,
    num_heads: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    head_dim: int = HEAD_DIM,
    vocabulary_size: int = VOCAB_SIZE,
    dropout_rate: float = DROPOUT_RATE,
    activations: t5_common_layers.Activations = ACTIVATIONS,
    dtype: DType = jnp.bfloat16,
) -> EncoderDecoder:
    """The model; widths and counts as in `Config`."""

    def output_logits() -> dense.DenseGeneral:
        return dense.DenseGeneral(
            features=vocabulary_size,
            use_bias=False,
            dtype="float32",
            kernel_init=t5_common_layers.MLP_KERNEL_INIT,
            bias_init=t5_common_layers.BIAS_INIT,
        )

    return t5_common_layers.encoder_decoder(
        embedding_dim,
        mlp_dim,
        num_heads,
        num_encoder_layers,
        num_decoder_layers,
        head_dim,
        vocabulary_size,
        dropout_rate,
        activations,
        output_logits_factory=output_logits,
        dtype=dtype,
    )
