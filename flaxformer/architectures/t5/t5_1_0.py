"""T5 1.0: ReLU, one table for tokens and logits. Source: Raffel et al. 2020, arXiv:1910.10683."""

import dataclasses

import jax.numpy as jnp

from flaxformer.architectures.t5 import t5_common_layers
from flaxformer.architectures.t5.t5_architecture import EncoderDecoder
from flaxformer.types import DType

DROPOUT_RATE = 0.0
ACTIVATIONS = ("relu",)
VOCAB_SIZE = 32128


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes that differ between the published models; `encoder_decoder(**dataclasses.asdict(config))`."""

    embedding_dim: int
    mlp_dim: int
    head_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int


SMALL_CONFIG = Config(512, 2048, 64, 8, 6, 6)
BASE_CONFIG = Config(768, 3072, 64, 12, 12, 12)
LARGE_CONFIG = Config(1024, 4096, 64, 16, 24, 24)
XL_CONFIG = Config(1024, 16384, 128, 32, 24, 24)
XXL_CONFIG = Config(1024, 65536, 128, 128, 24, 24)


def encoder_decoder(
    embedding_dim: int,
    mlp_dim: int,
    num_heads: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    head_dim: int,
    vocabulary_size: int = VOCAB_SIZE,
    dropout_rate: float = DROPOUT_RATE,
    activations: t5_common_layers.Activations = ACTIVATIONS,
    dtype: DType = jnp.bfloat16,
) -> EncoderDecoder:
    """The model; widths and counts as in `Config`."""
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
        dtype=dtype,
    )
