"""An encoder with heads: what a sequence is, what its tokens are, where an answer stands.

Each head reads the encoder's hidden states and, by naming them, what earlier heads gave:

    hidden [B T D] -> pooled [B D] -> next_sentence [B 2]
                   -> masked_lm [B T V]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from flaxformer.architectures.models import EncoderOnly
from flaxformer.components.activations import resolve_activation
from flaxformer.components.calling import call_part
from flaxformer.components.dense import DenseGeneral
from flaxformer.types import Activation, Array, DType


class EncoderWithHeads(EncoderOnly):
    """An encoder and heads on top of it.

    Attributes:
      encoder_factory, scan_layers, padding_id: as in `EncoderOnly`.
      head_factories: pairs of an output's name and what makes its head, a module called with those of `hidden`, earlier
        outputs, `tokens`, `attend` (hidden states to the vocabulary, by the token table) and `enable_dropout` that its
        signature names.
      flag_tokens: from token ids to flags `[B T]`, which of them are global where a call does not say; none when None.
    """

    head_factories: Sequence[tuple[str, Callable[[], nn.Module]]] = ()
    flag_tokens: Callable[[Array], Array] | None = None

    def setup(self) -> None:
        super().setup()
        self.heads = {name: make() for name, make in self.head_factories}

    def __call__(
        self,
        encoder_input_tokens: Num[Array, "B T"],
        encoder_segment_ids: Int[Array, "B T"] | None = None,
        encoder_positions: Int[Array, "B T"] | None = None,
        *,
        enable_dropout: bool = True,
        encoder_valid: Bool[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        global_tokens: Bool[Array, "B T"] | None = None,
    ) -> dict[str, Array]:
        """The hidden states, as `hidden`, and every head's output by its name; arguments as in `EncoderOnly`."""
        if global_tokens is None and self.flag_tokens is not None:
            global_tokens = self.flag_tokens(encoder_input_tokens)
        hidden = super().__call__(
            encoder_input_tokens,
            encoder_segment_ids,
            encoder_positions,
            enable_dropout=enable_dropout,
            encoder_valid=encoder_valid,
            token_types=token_types,
            global_tokens=global_tokens,
        )
        attend = getattr(self.encoder.embedder.embedders["token_ids"], "attend", None)
        return self._with_heads(
            {"hidden": hidden}, tokens=encoder_input_tokens, attend=attend, enable_dropout=enable_dropout
        )

    def _with_heads(self, outputs: dict[str, Any], **offered: Any) -> dict[str, Any]:
        """`outputs`, and what every head makes of them and of the other keywords."""
        for name, _ in self.head_factories:
            outputs[name] = call_part(self.heads[name], **offered, **outputs)
        return outputs


class Pooler(nn.Module):
    """A vector for the sequence, from its first token: `activation(dense hidden[:, 0])`.

    Attributes:
      features: width of the vector.
      activation: after the dense layer.
      dtype: of the computation.
    """

    features: int
    activation: str | Activation = "tanh"
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B P"]:
        """Pools."""
        dense = DenseGeneral(self.features, True, dtype=self.dtype, kernel_axis_names=("embed", "mlp"), name="dense")
        return resolve_activation(self.activation)(dense(hidden[:, 0]))


class Classifier(nn.Module):
    """One dense layer on the pooled vector: `dense(dropout pooled)`.

    Attributes:
      num_classes: C.
      dropout_rate: on what it reads.
      dtype: of the computation.
    """

    num_classes: int
    dropout_rate: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "B P"], *, enable_dropout: bool = True) -> Float[Array, "B C"]:
        """Scores of the classes."""
        return _last_layer(self, self.num_classes, pooled, enable_dropout)


class TokenClassifier(nn.Module):
    """One dense layer on every token. With `num_classes=2`, spans: where an answer starts, and where it ends.

    The attributes are those of `Classifier`.
    """

    num_classes: int
    dropout_rate: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"], *, enable_dropout: bool = True) -> Float[Array, "B T C"]:
        """Scores of the classes at every token."""
        return _last_layer(self, self.num_classes, hidden, enable_dropout)


class TokenDetector(nn.Module):
    """One score for every token: `dense_out(activation(dense hidden))`, positive where it was replaced.

    Attributes:
      features: width between the layers.
      activation: between them.
      dtype: of the computation.

    Source: Clark et al. 2020, "ELECTRA", arXiv:2003.10555.
    """

    features: int
    activation: str | Activation
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """The scores."""
        names = {"dtype": self.dtype, "kernel_axis_names": ("embed", "mlp")}
        x = resolve_activation(self.activation)(DenseGeneral(self.features, True, name="dense", **names)(hidden))
        return DenseGeneral(1, True, name="out", **names)(x)[..., 0]


class DeepClassifier(nn.Module):
    """Classes from the first token by two layers: `out(dropout(activation(dense(dropout hidden[:, 0]))))`.

    Attributes:
      features: width between the layers.
      num_classes: C.
      activation: between them.
      dropout_rates: before the first layer and before the second.
      dtype: of the computation.
    """

    features: int
    num_classes: int
    activation: str | Activation = "tanh"
    dropout_rates: Sequence[float] = (0.0, 0.0)
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"], *, enable_dropout: bool = True) -> Float[Array, "B C"]:
        """Scores of the classes."""
        names: dict[str, Any] = {"dtype": self.dtype, "kernel_axis_names": ("embed", "mlp")}
        first, second = (nn.Dropout(rate, deterministic=not enable_dropout) for rate in self.dropout_rates)
        x = resolve_activation(self.activation)(
            DenseGeneral(self.features, True, name="dense", **names)(first(hidden[:, 0]))
        )
        return DenseGeneral(self.num_classes, True, name="out", **names)(second(x))


def _last_layer(module: Any, num_classes: int, x: Array, enable_dropout: bool) -> Array:
    x = nn.Dropout(module.dropout_rate, deterministic=not enable_dropout)(x)
    return DenseGeneral(num_classes, True, dtype=module.dtype, kernel_axis_names=("embed", "mlp"), name="dense")(x)
