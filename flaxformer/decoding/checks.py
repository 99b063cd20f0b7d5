"""Logits that are no numbers, noticed where they first occur."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.types import Array


class NotFiniteError(ValueError):
    """The model gave logits that are no numbers."""


@flax.struct.dataclass
class Fault:
    """The first step and row whose logits hold NaN or +inf, or -inf only; step -1 while there is none."""

    step: Int[Array, ""]
    row: Int[Array, ""]

    @classmethod
    def none(cls) -> Fault:
        return cls(jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32))

    def note(self, logits: Float[Array, "R ..."], step: Int[Array, ""] | int, counted: Array | bool = True) -> Fault:
        """This fault, or the first one in these logits; rows that are not `counted` do not matter."""
        bad = (_not_finite(logits) & counted).reshape(len(logits), -1).any(axis=1)  # [R]
        new = jnp.any(bad) & (self.step < 0)
        row = jnp.argmax(bad).astype(jnp.int32)
        return Fault(jnp.where(new, jnp.asarray(step, jnp.int32), self.step), jnp.where(new, row, self.row))

    def report(self, width: int) -> None:
        """Raises what was noted, outside of jit.

        Raises:
          NotFiniteError: naming the step and the row.
        """
        if int(self.step) >= 0:
            item, row = divmod(int(self.row), width)
            raise NotFiniteError(
                f"the logits of step {int(self.step)}, row {int(self.row)} (row {row} of item {item}) are not finite; "
                "expected numbers. Do the parameters hold NaN, or does the compute dtype overflow?"
            )


def _not_finite(logits: Float[Array, "*R V"]) -> Bool[Array, "*R"]:
    maximum = jnp.max(logits, axis=-1)  # NaN wherever one is
    return ~jnp.isfinite(maximum)
