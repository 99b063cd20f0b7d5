"""The position that an embedder counts by itself, as T5X's decoding loop expects."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int, UInt32

from flaxformer.types import Array

_BEFORE_THE_FIRST = jnp.iinfo(jnp.uint32).max  # minus one, wrapped: the call that creates the cache moves it to 0


def next_position(module: nn.Module) -> UInt32[Array, "#B"]:
    """Reads `cache/position_embedder_index` of `module` and moves it one on.

    The call that creates the cache reads -1, which lies outside every table, and leaves 0 for the first real step.
    A caller may put one index per row in the place of the single one.
    """
    index = module.variable(
        "cache", "position_embedder_index", lambda: jnp.full((1,), _BEFORE_THE_FIRST, dtype=jnp.uint32)
    )
    current = index.value
    index.value = current + 1
    return current


class CountedPositions(nn.Module):
    """What embedders that count positions by themselves answer when a prompt was read at once."""

    @nn.nowrap
    def continue_behind(self, lengths: Int[Array, " B"]) -> None:
        """Lets the next decode step of row b stand at position `lengths[b]`; without a cache, does nothing."""
        if self.has_variable("cache", "position_embedder_index"):
            self.put_variable("cache", "position_embedder_index", jnp.asarray(lengths, jnp.uint32))
