"""Differential attention: the difference of two attention maps, in which noise that both share cancels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from flaxformer.components.attention.kernels.biases import Bias
from flaxformer.components.attention.masks import Mask
from flaxformer.components.attention.scoring import takes_lazy_bias
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.attention.variants.heads import weights_of, with_head_axis
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.parameters import parameter
from flaxformer.types import Array, DType


def lambda_at(depth: int) -> float:
    """The initial λ of the layer at `depth`, from 0 on, as the paper has it.

    >>> round(lambda_at(0), 3), round(lambda_at(11), 3)
    (0.2, 0.778)
    """
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


class Differential(nn.Module):
    """`norm((softmax(q₁·k₁) - λ softmax(q₂·k₂)) · [v₁ v₂]) · (1 - λ₀)` for each pair of heads 1, 2.

        λ = exp(a₁ · b₁) - exp(a₂ · b₂) + λ₀          a, b: four learned vectors [H], shared by the heads

    Two heads that stand side by side make a pair: their values are joined, so that N heads of width H come out of a
    layer as N/2 heads of width 2H, laid out as N of width H.

    Attributes:
      attend: the attention function of each head.
      lambda_init: λ₀; the paper finds 0.8 in all layers as good as `lambda_at(depth)`.
      epsilon: of the root-mean-square norm over the 2H features of a pair.

    Source: Ye et al. 2024, "Differential transformer", section 2.1, https://arxiv.org/abs/2410.05258
    """

    attend: Callable[..., Array] = Attend()
    lambda_init: float = 0.8
    epsilon: float = 1e-5

    @property
    def takes_lazy_bias(self) -> bool:
        """As its `attend` does."""
        return takes_lazy_bias(self.attend)

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S ..."],
        value: Float[Array, "B S ..."],
        bias: Array | Bias | None = None,
        *,
        mask: Mask | Array | None = None,
        dtype: DType = jnp.float32,
        **options: Any,
    ) -> Float[Array, "B T N V"]:
        """Attends; the arguments are those of `Attend`.

        Raises:
          ValueError: when key heads do not come in pairs.
        """
        query, key, value = with_head_axis(query, key, value)
        heads, width = value.shape[-2:]
        if heads % 2:
            raise ValueError(
                f"differential attention got {heads} key heads; expected an even number, since two make a pair. "
                "Change num_heads, or num_kv_heads."
            )
        weight = self._lambda(query.shape[-1])
        joined = jnp.repeat(value.reshape(*value.shape[:-2], heads // 2, 2 * width), 2, axis=-2)  # [B S K 2V]
        x = self.attend(query, key, joined, bias, mask=mask, dtype=dtype, **options)  # [B T N 2V]
        x = x[..., 0::2, :] - weight.astype(x.dtype) * x[..., 1::2, :]  # [B T N/2 2V]
        x = T5LayerNorm(self.epsilon, dtype, scale_axis_name="kv", name="norm")(x) * (1 - self.lambda_init)
        return x.reshape(*query.shape[:-1], width)

    def weights(self, query: Array, key: Array, bias: Array | Bias | None = None, **options: Any) -> Array:
        """The weights `[B N T S]` of the single heads, before they are subtracted from each other."""
        own = getattr(self.attend, "weights", None)
        return weights_of(self.attend, query, key, bias, **options) if own is None else own(query, key, bias, **options)

    @nn.nowrap
    def _lambda(self, width: int) -> Float[Array, ""]:
        def vector(name: str) -> Float[Array, " H"]:
            init = nn.initializers.normal(0.1)
            return parameter(self, name, init, (width,), axes=("kv",))

        first, second = (
            jnp.exp(vector(f"lambda_q{i}") @ vector(f"lambda_k{i}"))
            for i in (1, 2)  # the paper's names
        )
        return first - second + self.lambda_init
