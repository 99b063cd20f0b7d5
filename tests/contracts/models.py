"""Tiny models that the contracts are checked on, built from parts."""

import functools

import flax.linen as nn

from flaxformer.architectures.t5 import t5_architecture, t5_common_layers
from flaxformer.architectures.t5.parallel_fused_decoder import ParallelFusedDecoderLayer
from flaxformer.components import convolution, dense, embedding, layer_norm
from flaxformer.components.attention import dense_attention

VOCABULARY, WIDTH, HEADS, HEAD_DIM, MLP = 17, 16, 4, 4, 24


def attention(kind: str = "multi_head", **options) -> nn.Module:
    options = {"num_heads": HEADS, "head_dim": HEAD_DIM, "use_bias": False, "dropout_rate": 0.0} | options
    if kind == "multi_query":
        return dense_attention.MultiQueryDotProductAttention(**options)
    heads = {"multi_head": None, "grouped": 2, "single": 1}[kind]
    return dense_attention.MultiHeadDotProductAttention(num_kv_heads=heads, **options)


def mlp(**options) -> nn.Module:
    options = {"intermediate_dim": MLP, "activations": ("gelu", "linear"), "use_bias": False} | options
    return dense.MlpBlock(**options)


def dropout() -> nn.Module:
    return nn.Dropout(0.0)


def table() -> nn.Module:
    return embedding.Embed(VOCABULARY, WIDTH, embedding_init=nn.initializers.normal(1.0))


def relative_bias() -> nn.Module:
    bias = t5_common_layers.relative_position_bias(HEADS, "float32")
    return bias.clone(embedding_init=nn.initializers.normal(1.0))


def convolve(dims: int = 2) -> nn.Module:
    return convolution.Depthwise1dConv(axis_names=["heads", "kv"][-dims:], num_feature_dims=dims)


def layer_norm_factory(**options):
    return functools.partial(layer_norm.T5LayerNorm, **options)


def logits() -> nn.Module:
    return dense.DenseGeneral(VOCABULARY, use_bias=False, kernel_axis_names=["embed", "vocab"])


def encoder(
    *,
    scan: bool = False,
    remat: str = "legacy",
    layers: int = 2,
    make_attention=attention,
    shared_token_embedder=None,
    **options,
):
    def layer(*, shared_relative_position_bias=None):
        return t5_architecture.EncoderLayer(
            attention=make_attention(),
            mlp=mlp(),
            dropout_factory=dropout,
            layer_norm_factory=layer_norm_factory(),
            shared_relative_position_bias=shared_relative_position_bias,
            relative_position_bias_factory=relative_bias if scan else None,
            scanned=scan,
        )

    return t5_architecture.Encoder(
        layer_factory=layer,
        input_dropout_factory=dropout,
        output_dropout_factory=dropout,
        layer_norm_factory=layer_norm_factory(),
        num_layers=layers,
        layer_remat=remat,
        scan_layers=scan,
        shared_relative_position_bias_factory=None if scan else relative_bias,
        token_embedder_factory=table if shared_token_embedder is None else None,
        shared_token_embedder=shared_token_embedder,
        **options,
    )


def decoder(
    *,
    cross: bool,
    scan: bool = False,
    remat: str = "legacy",
    layers: int = 2,
    make_attention=attention,
    make_mlp=mlp,
    bias: bool = True,
    per_layer_bias: bool | None = None,
    norm=None,
    parallel: bool = False,
    shared_token_embedder=None,
    **options,
):
    per_layer_bias = scan if per_layer_bias is None else per_layer_bias
    norm = norm or layer_norm_factory()

    def layer(*, shared_relative_position_bias=None):
        return t5_architecture.DecoderLayer(
            self_attention=make_attention(),
            encoder_decoder_attention=make_attention() if cross else None,
            mlp=make_mlp(),
            dropout_factory=dropout,
            layer_norm_factory=norm,
            shared_relative_position_bias=shared_relative_position_bias,
            relative_position_bias_factory=relative_bias if bias and per_layer_bias else None,
            parallel=parallel,
            scanned=scan,
        )

    return t5_architecture.Decoder(
        layer_factory=layer,
        dropout_factory=dropout,
        layer_norm_factory=norm,
        num_layers=layers,
        layer_remat=remat,
        scan_layers=scan,
        shared_relative_position_bias_factory=relative_bias if bias and not per_layer_bias else None,
        output_logits_factory=logits,
        token_embedder_factory=table if shared_token_embedder is None else None,
        shared_token_embedder=shared_token_embedder,
        **options,
    )


def encoder_decoder(*, scan: bool = False, remat: str = "legacy", layers: int = 2, **options):
    return t5_architecture.EncoderDecoder(
        encoder_factory=functools.partial(encoder, scan=scan, remat=remat, layers=layers),
        decoder_factory=functools.partial(decoder, cross=True, scan=scan, remat=remat, layers=layers, **options),
        shared_token_embedder_factory=lambda: table().clone(name="token_embedder"),
        scan_layers=scan,
    )


def decoder_only(*, scan: bool = False, **options):
    return t5_architecture.DecoderOnly(
        decoder_factory=functools.partial(decoder, cross=False, scan=scan, **options), scan_layers=scan
    )


def fused_decoder_only(*, layers: int = 2):
    def layer(*, shared_relative_position_bias=None):
        return ParallelFusedDecoderLayer(
            self_attention=attention("multi_query", out_features=WIDTH, rescale_logits=True),
            mlp=mlp(precomputed_intermediates=True, out_dim=WIDTH),
            dropout_factory=dropout,
            layer_norm_factory=layer_norm_factory(),
            shared_relative_position_bias=shared_relative_position_bias,
        )

    return t5_architecture.DecoderOnly(
        decoder_factory=lambda shared_token_embedder=None: t5_architecture.Decoder(
            layer_factory=layer,
            dropout_factory=dropout,
            layer_norm_factory=layer_norm_factory(),
            num_layers=layers,
            shared_relative_position_bias_factory=relative_bias,
            output_logits_factory=logits,
            token_embedder_factory=table,
        )
    )
