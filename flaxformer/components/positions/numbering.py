"""Which position each token has, where that is not its place in the row."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Bool, Int

from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class CountTokens:
    """Counts the tokens that are not padding by their id; padding has position -1, whoever may see it.

    Attributes:
      padding_id: the id that is not counted.

    >>> CountTokens(1)(jnp.array([[5, 6, 1, 7]]), None).tolist()
    [[0, 1, -1, 2]]

    Source: Ott et al. 2019, "fairseq", whose models (RoBERTa) number tokens so.
    """

    padding_id: int = 0

    def __call__(self, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"] | None) -> Int[Array, "B T"]:
        """The positions of `tokens`; which of them are `valid` does not matter."""
        counted = tokens != self.padding_id
        return jnp.where(counted, jnp.cumsum(counted, axis=-1, dtype=jnp.int32) - 1, -1)


@dataclasses.dataclass(frozen=True)
class CountValid:
    """Counts the valid tokens; the others have position -1.

    >>> CountValid()(jnp.array([[5, 6, 7]]), jnp.array([[False, True, True]])).tolist()
    [[-1, 0, 1]]
    """

    def __call__(self, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Int[Array, "B T"]:
        """The positions of `tokens`, by which of them are `valid`."""
        return jnp.where(valid, jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, -1)
