"""Matrices of weights as 8-bit integers, and their product with rows."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int8

from flaxformer.types import Array

LARGEST = 127


class Int8Matrix(flax.struct.PyTreeNode):
    """`values * scale`: every column rounded to 255 levels, by a scale of its own.

    It stands where a parameter `[K N]` stands. Modules that know it multiply integers; for all others, which take
    parameters by `jnp.asarray`, it is an array of float32.

    Attributes:
      values: from -127 to 127. Behind further axes (layers) it is a stack of matrices.
      scale: what the columns are multiples of.
    """

    values: Int8[Array, "*layers K N"]
    scale: Float[Array, "*layers N"]

    @classmethod
    def rounded(cls, matrix: Float[Array, "*layers K N"]) -> Int8Matrix:
        """The closest integers to a matrix, or to each of a stack of them."""
        values, scale = _round(matrix.mT)
        return cls(values.mT, scale[..., 0])

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def dtype(self) -> jnp.dtype:
        return self.values.dtype

    @property
    def mT(self) -> Int8Matrix:  # noqa: N802 (NumPy's name)
        """The same numbers with their last two axes exchanged; still one scale per output."""
        return self.replace(values=self.values.mT)

    def __jax_array__(self) -> Float[Array, "*layers K N"]:
        return self.values * self.scale[..., None, :]

    def times(self, rows: Float[Array, "*R K"]) -> Float[Array, "*R N"]:
        """`rows @ self` in integers: rows are rounded too, each by a scale of its own.

        The weights are read by output, for which XLA has a fast product on CPU; see `flaxformer.components.products`.
        """
        values, scale = _round(rows)
        contracted = (((rows.ndim - 1,), (1,)), ((), ()))
        sums = jax.lax.dot_general(values, self.values.mT, contracted, preferred_element_type=jnp.int32)
        return (sums * scale * self.scale).astype(rows.dtype)


def _round(rows: Float[Array, "*R K"]) -> tuple[Int8[Array, "*R K"], Float[Array, "*R 1"]]:
    """Every row as integers, and what they are multiples of; rows of zeros stay so."""
    largest = jnp.max(jnp.abs(rows.astype(jnp.float32)), axis=-1, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest / LARGEST)
    return jnp.round(rows / scale).astype(jnp.int8), scale
