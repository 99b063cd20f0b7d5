"""The caches and what belongs to them; see `caches`."""

import flax.linen as nn

from flaxformer.components.attention.caches import (
    Cache,
    FullCache,
    Place,
    QuantizedCache,
    RingCache,
    from_cache,
    offsets,
    remember,
    to_cache,
)
from flaxformer.step import Step
from flaxformer.types import Array


def append(owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
    """`FullCache().append`."""
    return FullCache().append(owner, key, value, step)


__all__ = [
    "Cache",
    "FullCache",
    "Place",
    "QuantizedCache",
    "RingCache",
    "append",
    "from_cache",
    "offsets",
    "remember",
    "to_cache",
]
