"""Sigmoid attention: each key is weighed for itself, without a softmax over all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.attention_functions import (
    apply_dot_product_attention_weights_to_values,
    drop_weights,
    scaled_logits,
)
from flaxformer.components.attention.masks import Mask, as_mask
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from flaxformer.types import Array, DType, Precision, PRNGKey


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """`sigmoid(q · k + bias - log n) · v`: with n keys alike, the weights sum to about one.

    A query that may see nothing attends to nothing.

    Attributes:
      length: n, the length that weights are scaled for. None: the number of keys a query may see, which padding and
        caching do not change.

    >>> query = jnp.zeros((1, 2, 1, 4))
    >>> Sigmoid(length=3).weights(query, query)[0, 0]
    Array([[0.25, 0.25],
           [0.25, 0.25]], dtype=float32)

    Source: Ramapuram et al. 2024, "Theory, analysis, and best practices for sigmoid self-attention",
    https://arxiv.org/abs/2409.04431, where n is the length of the sequence for all queries.
    """

    length: int | None = None

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S ..."],
        value: Float[Array, "B S ..."],
        bias: Array | None = None,
        *,
        mask: Mask | Array | None = None,
        broadcast_dropout: bool = True,
        rescale_logits: bool = False,
        dropout_rng: PRNGKey | None = None,
        dropout_rate: float = 0.0,
        enable_dropout: bool = True,
        dtype: DType = jnp.float32,
        precision: Precision = None,
        use_extra_logit: bool = False,
        float32_logits: bool = False,
    ) -> Float[Array, "B T N V"]:
        """Attends; the arguments are those of `dot_product_attention`, without an extra logit.

        Raises:
          ValueError: for `use_extra_logit`.
        """
        if use_extra_logit:
            raise ValueError(
                "the layer has use_extra_logit=True and sigmoid attention; expected False, since its weights need not "
                "sum to one, with or without another logit."
            )
        query, key, value = with_head_axis(query, key, value)
        logits = scaled_logits(query, key, rescale_logits, False, dtype, precision, float32_logits)
        logits = logits if bias is None else logits + bias.astype(logits.dtype)
        visible = None if mask is None else as_mask(mask).dense(*logits.shape[-2:])
        weights = jax.nn.sigmoid(logits - self._log_length(visible, logits)).astype(dtype)
        weights = weights if visible is None else jnp.where(visible, weights, 0)
        if enable_dropout and dropout_rate > 0.0:
            weights = drop_weights(weights, dropout_rng, dropout_rate, broadcast_dropout)
        return apply_dot_product_attention_weights_to_values(weights, value, precision)

    def weights(self, query: Array, key: Array, bias: Array | None = None, **options: Any) -> Array:
        """The weights `[B N T S]`."""
        return weights_of(self, query, key, bias, **options)

    def _log_length(self, visible: Array | None, logits: Array) -> Array:
        if self.length is not None:
            count = jnp.asarray(self.length)
        elif visible is None:
            count = jnp.asarray(logits.shape[-1])
        else:
            count = visible.sum(-1, keepdims=True)
        return jnp.log(jnp.maximum(count, 1).astype(jnp.float32)).astype(logits.dtype)
