"""Masks in the words of kernels that know a window, key lengths and segments, and nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxformer.components.attention import masks


class Plain(NamedTuple):
    """A conjunction of what such kernels know.

    Attributes:
      left: keys before the query that it sees, None for all.
      right: keys after it, likewise; 0 is causal.
      key_lengths: `[#B]`, None for all keys.
      query_ids: `[#B T]`, None for one segment.
      key_ids: `[#B S]`, likewise.
    """

    left: int | None = None
    right: int | None = None
    key_lengths: Any = None
    query_ids: Any = None
    key_ids: Any = None

    @property
    def causal(self) -> bool:
        """Whether keys after the query are hidden, and nothing else is by distance."""
        return self.right == 0 and self.left is None

    @property
    def everywhere(self) -> bool:
        """Whether distance hides nothing."""
        return self.right is None and self.left is None


def translate(mask: masks.Mask | None) -> Plain | str:
    """The mask in these words, or the reason why there are none."""
    plain = Plain()
    for part in mask.parts if isinstance(mask, masks.And) else () if mask is None else (mask,):
        if isinstance(part, masks.Window):
            if part.query_positions is not None or part.key_positions is not None:
                return f"{type(part).__name__} at positions other than 0, 1, 2... is not supported"
            plain = plain._replace(left=_least(plain.left, part.left), right=_least(plain.right, part.right))
        elif isinstance(part, masks.KeyLengths):
            lengths = jnp.asarray(part.lengths)
            plain = plain._replace(key_lengths=_least(plain.key_lengths, lengths))
        elif isinstance(part, masks.Segments) and plain.query_ids is None:
            plain = plain._replace(query_ids=part.query_ids, key_ids=part.key_ids)
        elif isinstance(part, masks.Segments):
            return "two kinds of segments at once are not supported"
        else:
            return f"the mask {type(part).__name__} is not supported"
    return plain


def _least(a: Any, b: Any) -> Any:
    """The smaller of two limits, of which None is none."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b) if isinstance(a, int) else jnp.minimum(a, b)
