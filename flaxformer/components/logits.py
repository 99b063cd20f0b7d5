"""From the last hidden state to scores over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.activations import resolve_activation
from flaxformer.components.dense import DenseGeneral
from flaxformer.parameters import parameter
from flaxformer.types import Activation, Array, DType, Initializer


def softcap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap · tanh(x / cap)`: nearly `x` where it is small, never beyond `cap`; `x` itself without a cap.

    >>> float(softcap(jnp.array(1000.0), 30.0))
    30.0

    Source: Gemma Team 2024, "Gemma 2", arXiv:2408.00118, section 2.
    """
    return x if cap is None else jnp.tanh(x / cap) * cap


class TiedLogits(nn.Module):
    """Scores by the token table: `softcap(scale · x · embeddingᵀ + bias)`.

    Attributes:
      scale: a factor on `x`, such as 1/√D.
      use_bias: adds a bias per token, which then needs `num_embeddings`.
      num_embeddings: V.
      cap: bounds the scores; see `softcap`.
      bias_init: of the bias.

    Source: Press and Wolf 2017, "Using the Output Embedding to Improve Language Models".
    """

    scale: float | None = None
    use_bias: bool = False
    num_embeddings: int | None = None
    cap: float | None = None
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], *, attend: Callable[[Array], Array]) -> Float[Array, "*B V"]:
        """Scores `x`.

        Args:
          x: hidden states.
          attend: from a width to the vocabulary, `Embed.attend`.

        Raises:
          ValueError: for a bias of unknown size.
        """
        logits = attend(x if self.scale is None else x * jnp.asarray(self.scale, x.dtype))
        if self.use_bias:
            if self.num_embeddings is None:
                raise ValueError(
                    "TiedLogits has use_bias=True and num_embeddings=None; expected the vocabulary's size."
                )
            bias = parameter(self, "bias", self.bias_init, (self.num_embeddings,), axes=("vocab",))
            logits = logits + jnp.asarray(bias, logits.dtype)
        return softcap(logits, self.cap)


class OutputLogits(DenseGeneral):
    """Scores by a kernel of their own: `softcap(scale · x · kernel + bias)`.

    Attributes:
      features, use_bias, ...: as in `DenseGeneral`.
      scale: a factor on `x`.
      cap: bounds the scores; see `softcap`.
    """

    scale: float | None = None
    cap: float | None = None

    def __call__(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores `inputs`."""
        x = inputs if self.scale is None else inputs * jnp.asarray(self.scale, inputs.dtype)
        return softcap(super().__call__(x), self.cap)


class NoLogits(nn.Module):
    """The hidden states themselves, for a decoder without a head."""

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """`x`."""
        return x


class TransformedLogits(nn.Module):
    """Scores of a masked language model: `norm(activation(dense x))` against the token table, plus a bias.

    Attributes:
      features: width of the transform, that of the token table.
      num_embeddings: V.
      activation: between dense and norm.
      layer_norm_factory: makes the norm.
      dtype: of the computation.

    Source: Devlin et al. 2019, "BERT", https://github.com/google-research/bert.
    """

    features: int
    num_embeddings: int
    activation: str | Activation
    layer_norm_factory: Callable[[], nn.Module]
    dtype: DType = jnp.float32

    def setup(self) -> None:
        self.dense = DenseGeneral(self.features, True, dtype=self.dtype, kernel_axis_names=("embed", "mlp"))
        self.layer_norm = self.layer_norm_factory()
        self.logits = TiedLogits(use_bias=True, num_embeddings=self.num_embeddings)

    def __call__(self, hidden: Float[Array, "*B D"], *, attend: Callable[[Array], Array]) -> Float[Array, "*B V"]:
        """Scores the hidden states; `attend` as for `TiedLogits`."""
        return self.logits(self.layer_norm(resolve_activation(self.activation)(self.dense(hidden))), attend=attend)
