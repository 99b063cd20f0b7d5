"""Learned sinks: a logit per head that belongs to no key, so that a head may attend to nothing."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Float

from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import Mask
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.attention.variants.heads import weights_of
from flaxformer.parameters import parameter
from flaxformer.types import Array, Initializer


class Sinks(nn.Module):
    """`exp(logits) / (sum over keys of exp(logits) + exp(sink))`, with one learned sink per head.

    The layers' `use_extra_logit` is a sink that stays at 0.

    Attributes:
      attend: an attention function with a keyword `sinks`.
      sinks_init: of the parameter `sinks` `[N]`.

    Source: OpenAI 2025, "gpt-oss model card", section 2, https://arxiv.org/abs/2508.10925; Xiao et al. 2024, "Efficient
    streaming language models with attention sinks", https://arxiv.org/abs/2309.17453
    """

    attend: Attend = Attend()
    sinks_init: Initializer = nn.initializers.zeros

    takes_lazy_bias = True

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S ..."],
        value: Float[Array, "B S ..."],
        bias: Array | Bias | None = None,
        *,
        mask: Mask | Array | None = None,
        **options: Any,
    ) -> Float[Array, "B T N V"]:
        """Attends; the arguments are those of `Attend`."""
        heads = query.shape[-2]
        sinks = parameter(self, "sinks", self.sinks_init, (heads,), axes=("heads",))
        return self.attend(query, key, value, bias, mask=mask, sinks=sinks, **options)

    def weights(self, query: Array, key: Array, bias: Array | Bias | None = None, **options: Any) -> Array:
        """The weights `[B N T S]`, without those of the sinks."""
        return weights_of(self, query, key, bias, **options)
