"""Talking heads: the heads of a layer mix before and after the softmax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.attention_functions import (
    add_bias_and_mask,
    apply_dot_product_attention_weights_to_values,
    drop_weights,
    scaled_logits,
    softmax,
)
from flaxformer.components.attention.masks import Mask
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType, Initializer, Precision, PRNGKey, Shape


def identity(key: PRNGKey, shape: Shape, dtype: DType = jnp.float32) -> Float[Array, "N N"]:
    """An initializer: every head keeps to itself, so that an untrained layer attends as plain heads would."""
    del key
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class TalkingHeads(nn.Module):
    """`(softmax((q · k) mixed by P + bias) mixed by Q) · v`: P and Q are learned, `[N N]`.

    The square of weights is built for all heads: kernels of linear memory cannot mix heads.

    Attributes:
      logits_init: of `mix_logits`, P; from head n to head m.
      weights_init: of `mix_weights`, Q.

    Source: Shazeer et al. 2020, "Talking-heads attention", https://arxiv.org/abs/2003.02436. Heads of queries, of the
    softmax and of values are equally many here, and bias and mask are added between P and the softmax.
    """

    logits_init: Initializer = identity
    weights_init: Initializer = identity

    @nn.compact
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
        """Attends; the arguments are those of `dot_product_attention`."""
        query, key, value = with_head_axis(query, key, value)
        logits = scaled_logits(query, key, rescale_logits, False, dtype, precision, float32_logits)
        logits = self._mix("mix_logits", self.logits_init, logits)
        weights = softmax(add_bias_and_mask(logits, bias, mask), use_extra_logit).astype(dtype)
        weights = self._mix("mix_weights", self.weights_init, weights)
        if enable_dropout and dropout_rate > 0.0:
            weights = drop_weights(weights, dropout_rng, dropout_rate, broadcast_dropout)
        return apply_dot_product_attention_weights_to_values(weights, value, precision)

    def weights(self, query: Array, key: Array, bias: Array | None = None, **options: Any) -> Array:
        """The weights `[B N T S]` as they meet the values; they need not sum to one."""
        return weights_of(self, query, key, bias, **options)

    @nn.nowrap
    def _mix(self, name: str, init: Initializer, x: Float[Array, "B N T S"]) -> Float[Array, "B M T S"]:
        heads = x.shape[-3]
        mixing = parameter(self, name, init, (heads, heads), axes=("heads", "unmodeled"))
        return jnp.einsum("...nts,nm->...mts", x, mixing.astype(x.dtype))
