"""Sinusoidal absolute positions: waves of many lengths, sines in the first half of the features, cosines in the second.

    y[t, j] = sin(t * d_j),  y[t, h + j] = cos(t * d_j),  d_j = min_scale * (min_scale / max_scale) ** (j / (h - 1))

for `h = features // 2` waves; a last odd feature stays zero. With the default `min_scale` of 1, `d` falls from 1 to
`1 / max_scale`.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, in the layout of tensor2tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxformer.components import initializers
from flaxformer.components.embedder import EmbedderWithDecode, checked_ids
from flaxformer.components.positions.counter import CountedPositions, next_position
from flaxformer.types import Array, DType


def sinusoidal_embedding(
    positions: Int[Array, "*ids"], features: int, *, min_scale: float = 1.0, max_scale: float = 10000.0
) -> Float[Array, "*ids D"]:
    """The sinusoidal vector of each position, without a table and so without a greatest length.

    Args:
      positions: integers of any rank.
      features: width D, at least 4.
      min_scale: frequency of the fastest wave, in radians per position.
      max_scale: the slowest wave turns at `min_scale * (min_scale / max_scale)` radians per position.

    Returns:
      float32; equals `initializers.sinusoidal` up to rounding of the angle `t * d_j` in float32.

    Raises:
      ValueError: for fewer than 4 features, which leave no range of frequencies.

    >>> sinusoidal_embedding(jnp.array([0]), 5).tolist()
    [[0.0, 0.0, 1.0, 1.0, 0.0]]
    """
    waves = features // 2
    if waves < 2:
        raise ValueError(f"sinusoidal positions were asked for with {features} features; expected at least 4.")
    frequencies = min_scale * (min_scale / max_scale) ** (np.arange(waves) / (waves - 1))
    angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)  # [*ids h]
    odd = jnp.zeros((*angles.shape[:-1], features - 2 * waves), jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), odd], axis=-1)


class FixedEmbed(CountedPositions, EmbedderWithDecode[Array]):
    """A fixed vector for each position, read from a table that is computed and not learned; it has no parameters.

    Attributes:
      features: width D of the table.
      max_length: rows of the table. Positions beyond it embed as NaN.
      embedding_init: makes the table; called with no key, the shape and the type.
      dtype: type of the table; the sinusoidal default makes float32 only.
    """

    features: int
    max_length: int = 2048
    embedding_init: Callable[..., Array] = initializers.sinusoidal()
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "*ids"],
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Float[Array, "*ids D"]:
        """Embeds positions of any rank.

        Args:
          inputs: the positions; negative ones count from the end, once.
          segment_ids: not used, nor is `enable_dropout`.
          decode: ignores `inputs` and takes the next position of `cache/position_embedder_index`.

        Raises:
          ValueError: for positions that are not integers, or a `dtype` that `embedding_init` refuses.
        """
        table = self.embedding_init(None, (self.max_length, self.features), jnp.dtype(self.dtype))
        if decode:
            return jnp.take(table, next_position(self), axis=0)[:, None, :]  # [#B 1 D]
        return jnp.take(table, checked_ids(inputs), axis=0)
