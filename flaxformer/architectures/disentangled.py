"""What DeBERTa's encoder has beside disentangled attention: one table of distances, and a convolution at its bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from flaxformer.architectures.layers import EncoderLayer
from flaxformer.architectures.stacks import Encoder
from flaxformer.components.activations import resolve_activation
from flaxformer.components.calling import call_part
from flaxformer.step import Step
from flaxformer.types import Activation, Array


class DisentangledEncoder(Encoder):
    """An encoder whose layers share one table of distances.

    Attributes:
      layer_factory, ...: as in `Encoder`; the layers' attention is a `DisentangledAttention` without `distances`.
      distances_factory: makes the table, `[2 buckets D]`.

    Source: He et al. 2020, "DeBERTa", https://arxiv.org/abs/2006.03654.
    """

    distances_factory: Callable[[], nn.Module] | None = None

    def setup(self) -> None:
        if self.distances_factory is None or self.scan_layers:
            raise ValueError(
                f"DisentangledEncoder got distances_factory={self.distances_factory} and scan_layers="
                f"{self.scan_layers}; expected a table, and a list of layers: scanned ones own all they use, and these "
                "share the table."
            )
        self.distances = self.distances_factory()
        super().setup()

    @nn.nowrap
    def _make_layer(self, index: int = 0) -> nn.Module:
        layer: Any = super()._make_layer(index)
        return layer.clone(attention=layer.attention.clone(distances=self.distances))


class ConvolvedEncoderLayer(EncoderLayer):
    """An encoder layer beside a convolution of what enters it: `norm(layer(x) + activation(convolution(x)))`.

    Padding counts as zero, before the convolution and behind it.

    Attributes:
      attention, mlp, ...: as in `EncoderLayer`.
      convolution: over tokens, as long as its input, such as `StridedConvolution`.
      activation: of what it gives.

    Source: He et al. 2020, "DeBERTa", https://arxiv.org/abs/2006.03654; the convolution came with its second release,
    https://github.com/microsoft/DeBERTa.
    """

    convolution: nn.Module | None = None
    activation: str | Activation = "tanh"

    def setup(self) -> None:
        super().setup()
        if self.convolution is None or self.scanned:
            raise ValueError(
                f"ConvolvedEncoderLayer got convolution={self.convolution} and scanned={self.scanned}; expected a "
                "module, and a list of layers, of which this is the first."
            )
        self.convolution_norm = self._make_norm()
        self.convolution_dropout = self.dropout_factory()

    @nn.nowrap
    def _encode(self, inputs, encoder_mask, bias, logit_mask, enable_dropout: bool, step: Step) -> Array:
        x = super()._encode(inputs, encoder_mask, bias, logit_mask, enable_dropout, step)
        real = jnp.ones((), inputs.dtype) if logit_mask is None else logit_mask
        near = call_part(cast(nn.Module, self.convolution), inputs * real) * real
        near = self.convolution_dropout(near, deterministic=not enable_dropout)
        return self._norm(self.convolution_norm, real, step)(x + resolve_activation(self.activation)(near))
