"""What T5 1.0 and 1.1 share, as functions that build the parts with T5's settings.

Source: Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202 (gated MLPs).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxformer.architectures.t5.t5_architecture import Decoder, DecoderLayer, Encoder, EncoderDecoder, EncoderLayer
from flaxformer.components import dense, layer_norm, relative_position_biases
from flaxformer.components import embedding as embedding_module
from flaxformer.components.attention import dense_attention
from flaxformer.types import DType

ATTENTION_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
BIAS_INIT = nn.initializers.normal(stddev=1e-6)
MLP_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
RELPOS_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")

Activations = Sequence[str | Callable]


def attention_layer(num_heads: int, head_dim: int, dropout_rate: float, dtype: DType = jnp.bfloat16) -> nn.Module:
    """Multi-head attention without biases."""
    return dense_attention.MultiHeadDotProductAttention(
        num_heads=num_heads,
        head_dim=head_dim,
        dropout_rate=dropout_rate,
        dtype=dtype,
        use_bias=False,
        broadcast_dropout=True,
        kernel_init=ATTENTION_KERNEL_INIT,
        bias_init=BIAS_INIT,
    )


def mlp_block(mlp_dim: int, dropout_rate: float, activations: Activations, dtype: DType = jnp.bfloat16) -> nn.Module:
    """Feed-forward block without biases, with dropout between its two projections."""
    return dense.MlpBlock(
        use_bias=False,
        intermediate_dim=mlp_dim,
        activations=activations,
        intermediate_dropout_rate=dropout_rate,
        final_dropout_rate=0.0,
        kernel_init=MLP_KERNEL_INIT,
        bias_init=BIAS_INIT,
        dtype=dtype,
    )


def relative_position_bias(num_heads: int, dtype: DType = jnp.bfloat16) -> nn.Module:
    """32 buckets up to a distance of 128."""
    return relative_position_biases.RelativePositionBiases(
        num_heads=num_heads, num_buckets=32, max_distance=128, dtype=dtype, embedding_init=RELPOS_INIT
    )


def embedding(vocabulary_size: int, embedding_dim: int, dtype: DType = jnp.bfloat16) -> nn.Module:
    """The token table; logits that attend to it are float32."""
    return embedding_module.Embed(
        num_embeddings=vocabulary_size,
        features=embedding_dim,
        cast_input_dtype=jnp.int32,
        dtype=dtype,
        attend_dtype=jnp.float32,
        embedding_init=nn.initializers.normal(stddev=1.0),
        name="token_embedder",
    )


def dropout(rate: float) -> nn.Module:
    """Dropout with one mask for all positions of a sequence."""
    return nn.Dropout(rate=rate, broadcast_dims=(-2,))


def encoder_layer(
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    dropout_rate: float,
    activations: Activations,
    shared_relative_position_bias: nn.Module | None = None,
    dtype: DType = jnp.bfloat16,
) -> EncoderLayer:
    """One encoder layer."""
    return EncoderLayer(
        attention=attention_layer(num_heads, head_dim, dropout_rate, dtype),
        mlp=mlp_block(mlp_dim, dropout_rate, activations, dtype),
        dropout_factory=lambda: dropout(dropout_rate),
        layer_norm_factory=lambda: layer_norm.T5LayerNorm(dtype=dtype),
        shared_relative_position_bias=shared_relative_position_bias,
    )


def decoder_layer(
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    dropout_rate: float,
    activations: Activations,
    shared_relative_position_bias: nn.Module | None = None,
    dtype: DType = jnp.bfloat16,
) -> DecoderLayer:
    """One decoder layer that attends to the encoder."""
    return DecoderLayer(
        self_attention=attention_layer(num_heads, head_dim, dropout_rate, dtype),
        encoder_decoder_attention=attention_layer(num_heads, head_dim, dropout_rate, dtype),
        mlp=mlp_block(mlp_dim, dropout_rate, activations, dtype),
        dropout_factory=lambda: dropout(dropout_rate),
        layer_norm_factory=lambda: layer_norm.T5LayerNorm(dtype=dtype),
        shared_relative_position_bias=shared_relative_position_bias,
    )


def encoder(
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    num_layers: int,
    shared_token_embedder: embedding_module.Embedder | None,
    dropout_rate: float,
    activations: Activations,
    dtype: DType = jnp.bfloat16,
) -> Encoder:
    """An encoder whose layers share one relative position bias."""

    def make_layer(*, shared_relative_position_bias: nn.Module | None) -> EncoderLayer:
        return encoder_layer(
            num_heads, head_dim, mlp_dim, dropout_rate, activations, shared_relative_position_bias, dtype
        )

    return Encoder(
        layer_factory=make_layer,
        input_dropout_factory=lambda: dropout(dropout_rate),
        output_dropout_factory=lambda: dropout(dropout_rate),
        layer_norm_factory=lambda: layer_norm.T5LayerNorm(dtype=dtype),
        num_layers=num_layers,
        dtype=dtype,
        shared_relative_position_bias_factory=lambda: relative_position_bias(num_heads, dtype),
        shared_token_embedder=shared_token_embedder,
    )


def decoder(
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    num_layers: int,
    shared_token_embedder: embedding_module.Embedder | None,
    dropout_rate: float,
    activations: Activations,
    output_logits_factory: Callable[[], nn.Module] | None = None,
    dtype: DType = jnp.bfloat16,
) -> Decoder:
    """A decoder whose layers share one relative position bias."""

    def make_layer(*, shared_relative_position_bias: nn.Module | None) -> DecoderLayer:
        return decoder_layer(
            num_heads, head_dim, mlp_dim, dropout_rate, activations, shared_relative_position_bias, dtype
        )

    return Decoder(
        layer_factory=make_layer,
        dropout_factory=lambda: dropout(dropout_rate),
        layer_norm_factory=lambda: layer_norm.T5LayerNorm(dtype=dtype),
        num_layers=num_layers,
        dtype=dtype,
        shared_relative_position_bias_factory=lambda: relative_position_bias(num_heads, dtype),
        output_logits_factory=output_logits_factory,
        shared_token_embedder=shared_token_embedder,
    )


def encoder_decoder(
    embedding_dim: int,
    mlp_dim: int,
    num_heads: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    head_dim: int,
    vocabulary_size: int,
    dropout_rate: float,
    activations: Activations,
    output_logits_factory: Callable[[], nn.Module] | None = None,
    dtype: DType = jnp.bfloat16,
) -> EncoderDecoder:
    """A T5 with one token table for both stacks; logits from that table, or from `output_logits_factory`."""

    def make_encoder(*, shared_token_embedder: embedding_module.Embedder | None) -> Encoder:
        sizes = (num_heads, head_dim, mlp_dim, num_encoder_layers)
        return encoder(*sizes, shared_token_embedder, dropout_rate, activations, dtype)

    def make_decoder(*, shared_token_embedder: embedding_module.Embedder | None) -> Decoder:
        sizes = (num_heads, head_dim, mlp_dim, num_decoder_layers)
        return decoder(*sizes, shared_token_embedder, dropout_rate, activations, output_logits_factory, dtype)

    return EncoderDecoder(
        encoder_factory=make_encoder,
        decoder_factory=make_decoder,
        shared_token_embedder_factory=lambda: embedding(vocabulary_size, embedding_dim, dtype),
        dtype=dtype,
    )
