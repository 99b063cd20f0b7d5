"""Positive features whose products stand for the exponential of attention: `exp(q · k) ≈ φ(q) · φ(k)`.

Features are handled as their logarithms, so that nothing over- or underflows before it is summed.

A feature map is any object with two methods, `draw` and `logarithms`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxformer.types import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class FavorFeatures:
    """Positive orthogonal random features: `φ_m(x) = exp(w_m · x - |x|² / 2) / √M`, with `E[φ(q) · φ(k)] = exp(q · k)`.

    Directions `w_m` are orthogonal in groups of H, and as long as independent normal vectors would be.

    Attributes:
      count: M, features per head. The error falls with its square root.
      seed: of the directions. Layers of one model draw different ones, unless they are scanned.
      orthogonal: False draws directions independently.

    Source: Choromanski et al. 2020, "Rethinking Attention with Performers", sections 2.3 and 2.4,
    https://arxiv.org/abs/2009.14794
    """

    count: int = 256
    seed: int = 0
    orthogonal: bool = True

    def draw(self, width: int, name: str = "", rng: PRNGKey | None = None) -> Float[Array, "M H"]:
        """The directions.

        Args:
          width: H.
          name: of the layer, for directions from the seed.
          rng: draws from this key instead.
        """
        if rng is not None:
            return draw_directions(rng, self.count, width, self.orthogonal)
        return jnp.asarray(_fixed_directions(self.count, width, self.orthogonal, self.seed, zlib.crc32(name.encode())))

    def logarithms(self, x: Float[Array, "*n H"], directions: Float[Array, "M H"]) -> Float[Array, "*n M"]:
        """The logarithms of the features, in float32 or wider."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        half_square = jnp.sum(x * x, axis=-1, keepdims=True) / 2
        return jnp.einsum("...h,mh->...m", x, directions.astype(x.dtype)) - half_square - np.log(self.count) / 2


@dataclasses.dataclass(frozen=True)
class EluFeatures:
    """`φ(x) = elu(x) + 1`: H features and no chance, but another kernel than the exponential.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.2.1, https://arxiv.org/abs/2006.16236
    """

    def draw(self, width: int, name: str = "", rng: PRNGKey | None = None) -> None:
        """Nothing is drawn."""

    def logarithms(self, x: Float[Array, "*n H"], directions: None) -> Float[Array, "*n H"]:
        """The logarithms of the features, in float32 or wider."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(x > 0, jnp.log1p(jnp.maximum(x, 0)), x)


def draw_directions(rng: PRNGKey, count: int, width: int, orthogonal: bool = True) -> Float[Array, "M H"]:
    """Normal vectors, orthogonal in groups of `width` unless told otherwise."""
    for_vectors, for_lengths = jax.random.split(rng)
    if not orthogonal:
        return jax.random.normal(for_vectors, (count, width))
    groups = -(-count // width)
    rotations, triangles = jnp.linalg.qr(jax.random.normal(for_vectors, (groups, width, width)))
    directions = _without_preference(rotations, triangles).reshape(-1, width)[:count]
    lengths = jnp.linalg.norm(jax.random.normal(for_lengths, (count, width)), axis=-1, keepdims=True)
    return directions * lengths


@functools.cache
def _fixed_directions(count: int, width: int, orthogonal: bool, *seed: int) -> np.ndarray:
    """As `draw_directions`, on the host and so alike on every platform."""
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(count, width))
    if not orthogonal:
        return normal.astype(np.float32)
    rotations, triangles = np.linalg.qr(generator.normal(size=(-(-count // width), width, width)))
    directions = _without_preference(rotations, triangles).reshape(-1, width)[:count]
    return (directions * np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32)


def _without_preference(rotations: Any, triangles: Any) -> Any:
    """Rotations of which each is as likely as any other: a QR decomposition chooses signs, and so prefers some.

    Source: Mezzadri 2007, "How to generate random matrices from the classical compact groups", section 5,
    https://arxiv.org/abs/math-ph/0609050
    """
    signs = 1.0 - 2.0 * (triangles.diagonal(axis1=-2, axis2=-1) < 0)
    return rotations * signs[..., None, :]
