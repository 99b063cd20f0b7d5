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

    def note(self, bad: Bool[Array, " R"], steps: Int[Array, "#R"]) -> Fault:
        """This fault, or the first of those in the rows that are `bad` at their `steps`."""
        steps = jnp.where(bad, steps, jnp.iinfo(jnp.int32).max)
        row = jnp.argmin(steps).astype(jnp.int32)
        new = jnp.any(bad) & (self.step < 0)
        return Fault(jnp.where(new, steps[row], self.step), jnp.where(new, row, self.row))

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


def not_finite(logits: Float[Array, "*R V"]) -> Bool[Array, "*R"]:
    """Which rows hold NaN or +inf, or nothing but -inf."""
    return ~jnp.isfinite(jnp.max(logits, axis=-1))  # NaN wherever one is
