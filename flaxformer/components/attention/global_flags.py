"""Which tokens are global where a call does not say: rules from token ids."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Bool, Int

from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class First:
    """The first token, of which classes are read.

    >>> First()(jnp.array([[5, 6, 7]])).tolist()
    [[True, False, False]]

    Source: Beltagy et al. 2020, "Longformer", https://arxiv.org/abs/2004.05150, section 3.1.
    """

    def __call__(self, tokens: Int[Array, "B T"]) -> Bool[Array, "B T"]:
        """The flags of `tokens`."""
        return jnp.broadcast_to(jnp.arange(tokens.shape[-1]) == 0, tokens.shape)


@dataclasses.dataclass(frozen=True)
class BeforeSeparator:
    """What stands before the first separator: the question, in front of the text that has its answer.

    Attributes:
      separator_id: the id of the separator.

    >>> BeforeSeparator(2)(jnp.array([[5, 6, 2, 7, 2]])).tolist()
    [[True, True, False, False, False]]

    Source: as above.
    """

    separator_id: int

    def __call__(self, tokens: Int[Array, "B T"]) -> Bool[Array, "B T"]:
        """The flags of `tokens`."""
        return jnp.cumsum(tokens == self.separator_id, axis=-1) == 0
