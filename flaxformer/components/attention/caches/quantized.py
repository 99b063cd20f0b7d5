"""A cache of a quarter of the size: keys and values as int8."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int8

from flaxformer.components.attention.caches import store
from flaxformer.components.attention.caches.base import Cache
from flaxformer.components.attention.caches.place import Place
from flaxformer.step import Step, write_columns
from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class QuantizedCache(Cache):
    """Keeps keys and values as int8, with one scale per head and position.

    `x ≈ scale · round(x / scale)` with `scale = max |x| / 127` over the H entries of a head, so that no entry is off by
    more than `max |x| / 254`. Of H = 64 float32 entries, 256 bytes, 68 remain.

    A prompt attends to its own keys as they were computed; later tokens to what is kept.

    Source: Sheng et al. 2023, "FlexGen", section 5, with symmetric scales per head.
    """

    branches = True

    def append(self, owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
        slots = step.slots()
        store.check_writable(owner, self)
        place = Place(slots.positions, slots.key_positions, slots.key_valid, step.visible)
        kept = []
        for name, x in (("key", key), ("value", value)):
            parts = dict(zip((f"cached_{name}", f"{name}_scale"), quantize(store.to_cache(x)), strict=True))
            for leaf, part in parts.items():
                if step.fresh:
                    room = slots.cache_length - part.shape[-1]
                    parts[leaf] = jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, room)])
                else:
                    parts[leaf] = write_columns(store.read(owner, leaf), part, slots.slot)
                owner.put_variable("cache", leaf, parts[leaf])
            integers, scale = parts.values()
            kept.append(x if step.fresh else store.from_cache(dequantize(integers, scale)).astype(x.dtype))
        return *kept, place


def quantize(x: Float[Array, "*R H S"]) -> tuple[Int8[Array, "*R H S"], Float[Array, "*R S"]]:
    """`x` as int8 and what to multiply that by, one number per column.

    >>> integers, scale = quantize(jnp.array([[[1.27], [-0.5]]]))
    >>> integers[0, :, 0].tolist(), round(float(scale[0, 0]), 4)
    ([127, -50], 0.01)
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-2) / 127
    divisor = jnp.where(scale > 0, scale, 1)[..., None, :]
    return jnp.round(x / divisor).astype(jnp.int8), scale


def dequantize(integers: Int8[Array, "*R H S"], scale: Float[Array, "*R S"]) -> Float[Array, "*R H S"]:
    """The inverse of `quantize`, up to half a scale."""
    return integers.astype(jnp.float32) * scale[..., None, :]
