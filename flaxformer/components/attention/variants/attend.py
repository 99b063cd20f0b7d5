"""The attention function that hands everything on to `backends.attend`, which picks a kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention import backends
from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import Mask, as_mask
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from flaxformer.types import Array, DType, Precision, PRNGKey


@dataclasses.dataclass(frozen=True)
class Attend:
    """Attention by the fastest kernel that can do it, masks and biases as symbolic and lazy as they came.

    `softmax(softcap · tanh(scale · q · k / softcap) + bias) · v`

    Unlike `dot_product_attention`: softmax and sums are made in float32 whatever the dtype; and a query that may see
    nothing attends to nothing (zero), where that function takes the mean of all values.

    Attributes:
      implementation: a name in `backends.KERNELS`, or "auto".
      scale: of the products. None: 1/√H where the layer has `rescale_logits`, else 1. The layer divides the initial
        query kernel by √H unless `rescale_logits`: give `q_kernel_init` beside a scale.
      softcap: bends the scaled products into (-softcap, softcap), before the bias is added.

    >>> query = jnp.ones((1, 4, 2, 8))
    >>> Attend(softcap=50.0)(query, query, query).shape
    (1, 4, 2, 8)

    Source: for softcap, Gemma Team 2024, "Gemma 2", section 2, https://arxiv.org/abs/2408.00118
    """

    implementation: str = "auto"
    scale: float | None = None
    softcap: float | None = None

    takes_lazy_bias: ClassVar[bool] = True

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S ..."],
        value: Float[Array, "B S ..."],
        bias: Array | Bias | None = None,
        *,
        mask: Mask | Array | None = None,
        sinks: Float[Array, " N"] | None = None,
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
        """Attends; the arguments are those of `dot_product_attention`.

        Args:
          query: `[B T N H]`.
          key: `[B S K H]`, or `[B S H]` for one key head.
          value: `[B S K V]`, or `[B S V]`.
          bias: added to the logits: an array `[#B #N #T #S]`, or lazy.
          mask: who may see whom, symbolic or an array with entries above 0 where visible.
          sinks: `[N]`, one more logit per head, whose weight goes to nothing.
          broadcast_dropout: drop the same keys for all queries.
          rescale_logits: divide the logits by √H.
          dropout_rng: key of the dropout mask.
          dropout_rate: share of weights to drop.
          enable_dropout: False switches dropout off.
          dtype: accepted for the sake of the common interface, as is `float32_logits`.
          precision: of both products.
          use_extra_logit: sinks of 0.
          float32_logits: see `dtype`.

        Raises:
          ValueError: for two scales, two kinds of sinks, or a request that no kernel, or not the one named, serves.
        """
        query, key, value = with_head_axis(query, key, value)
        dropping = enable_dropout and dropout_rate > 0.0
        attended = backends.attend(
            query,
            key,
            value,
            mask=as_mask(mask),
            bias=bias,
            scale=self._scale(query.shape[-1], rescale_logits),
            softcap=self.softcap,
            sinks=_sinks(sinks, use_extra_logit, query.shape[-2]),
            dropout_rate=dropout_rate if dropping else 0.0,
            dropout_rng=dropout_rng if dropping else None,
            broadcast_dropout=broadcast_dropout,
            precision=precision,
            implementation=self.implementation,
        )
        return cast(Array, attended)  # alone, without residuals

    def weights(self, query: Array, key: Array, bias: Array | Bias | None = None, **options: Any) -> Array:
        """The weights `[B N T S]`; the arguments are those of a call, without the values."""
        return weights_of(dataclasses.replace(self, implementation="reference"), query, key, bias, **options)

    def _scale(self, width: int, rescale_logits: bool) -> float:
        if self.scale is None:
            return width**-0.5 if rescale_logits else 1.0
        if rescale_logits:
            raise ValueError(
                f"the layer has rescale_logits=True and its attention function scale={self.scale}; expected one of the "
                "two. Leave rescale_logits at False beside a scale."
            )
        return self.scale


def _sinks(sinks: Array | None, use_extra_logit: bool, num_heads: int) -> Array | None:
    if not use_extra_logit:
        return sinks
    if sinks is not None:
        raise ValueError(
            "the layer has use_extra_logit=True and its attention function learns sinks; expected one of the two. "
            "The extra logit is a sink that stays at 0."
        )
    return jnp.zeros(num_heads)
