"""Where the queries and keys of one attention call stand, and who may see whom for that reason alone."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Int

from flaxformer.components.attention.masks import ArrayMask, Mask, Padding, combine
from flaxformer.types import Array


@flax.struct.dataclass
class Place:
    """Where the queries and keys of one attention call stand.

    Attributes:
      q_positions: `[#B T]` int32.
      k_positions: `[#B S]` int32.
      k_valid: `[#B S]` bool, or None when every key is real.
      visible: `[#B T S]` bool, what each query may see of a cache that branches share; None: every real key.
      counted: the positions are plain row offsets, so that a mask may be drawn at trace time (static).
    """

    q_positions: Int[Array, "#B T"]
    k_positions: Int[Array, "#B S"]
    k_valid: Bool[Array, "#B S"] | None = None
    visible: Bool[Array, "#B T S"] | None = None
    counted: bool = flax.struct.field(pytree_node=False, default=False)

    def limit(self, mask: Mask | None) -> Mask | None:
        """`mask` without the slots that hold nothing or belong to another branch."""
        if self.visible is not None:  # real keys only
            return combine(mask, ArrayMask(self.visible[:, None]))
        return mask if self.k_valid is None else combine(mask, Padding(None, self.k_valid))


def offsets(length: int) -> Int[Array, "1 L"]:
    """Positions 0 .. length-1 as one row."""
    return jnp.arange(length, dtype=jnp.int32)[None]
