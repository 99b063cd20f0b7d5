"""The transformer stacks at the address of google/flaxformer; nothing here is particular to T5."""

from typing import Any, Protocol

import flax.linen as nn

from flaxformer.architectures.layers import DecoderLayer, EncoderLayer, PostNorm, PreNorm
from flaxformer.architectures.models import DecoderOnly, EncoderDecoder, EncoderOnly
from flaxformer.architectures.repeat import LayerRemat, maybe_remat, stack_layer_params, unstack_layer_params
from flaxformer.architectures.stacks import Decoder, Encoder
from flaxformer.components.embedding import Embedder


class MakeEncoderLayerFn(Protocol):
    """Makes an encoder layer."""

    def __call__(self, *, shared_relative_position_bias: nn.Module | None) -> nn.Module: ...


class MakeDecoderLayerFn(Protocol):
    """Makes a decoder layer."""

    def __call__(self, *, shared_relative_position_bias: nn.Module | None) -> nn.Module: ...


class MakeEncoderFn(Protocol):
    """Makes an encoder."""

    def __call__(self, *, shared_token_embedder: Embedder | None = None, spmd_annotations: Any = None) -> Encoder: ...


class MakeDecoderFn(Protocol):
    """Makes a decoder."""

    def __call__(self, *, shared_token_embedder: Embedder | None = None, spmd_annotations: Any = None) -> Decoder: ...


__all__ = [
    "Decoder",
    "DecoderLayer",
    "DecoderOnly",
    "Encoder",
    "EncoderDecoder",
    "EncoderLayer",
    "EncoderOnly",
    "LayerRemat",
    "MakeDecoderFn",
    "MakeDecoderLayerFn",
    "MakeEncoderFn",
    "MakeEncoderLayerFn",
    "PostNorm",
    "PreNorm",
    "maybe_remat",
    "stack_layer_params",
    "unstack_layer_params",
]
