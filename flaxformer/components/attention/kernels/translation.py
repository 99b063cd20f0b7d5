"""Masks in the words of kernels that know a window, key lengths and segments, and nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxformer.components.attention import masks
from flaxformer.types import Array


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


def segment_ids(plain: Plain, batch: int, query_length: int, key_length: int) -> tuple[Any, Any] | None:
    """Segments `[B T]` and `[B S]` that say what segments and key lengths say together; None without either.

    Keys past their row's length form a segment of their own, which no query belongs to.
    """
    if plain.key_lengths is None and plain.query_ids is None:
        return None
    query_ids = jnp.zeros((1, query_length)) if plain.query_ids is None else plain.query_ids
    key_ids = jnp.zeros((1, key_length)) if plain.key_ids is None else plain.key_ids
    query_ids, key_ids = (jnp.asarray(x, jnp.int32) for x in (query_ids, key_ids))
    if plain.key_lengths is not None:
        outside = jnp.arange(key_length) >= jnp.asarray(plain.key_lengths)[:, None]
        key_ids = jnp.where(outside, jnp.iinfo(jnp.int32).min, key_ids)
    return jnp.broadcast_to(query_ids, (batch, query_length)), jnp.broadcast_to(key_ids, (batch, key_length))


def without_blind_rows(output: Array, mask: masks.Mask | None, plain: Plain, key_length: int) -> Array:
    """Zero in rows that see nothing, where a kernel with finite mask values attends to something.

    Only segments and lengths can make such rows. The square of the mask is reduced as it is made, never stored.
    """
    if mask is None or (plain.key_lengths is None and plain.query_ids is None):
        return output
    sees = mask.dense(output.shape[1], key_length).any(-1)  # [#B 1 T]
    return jnp.where(sees.swapaxes(1, 2)[..., None], output, 0)


def expect(kernel: str, plain: Plain | str) -> Plain:
    """The translation, or a ValueError with the reason why there is none."""
    if isinstance(plain, str):
        raise ValueError(f"{kernel}: {plain}.")
    return plain


def multiple_of(size: int, **lengths: int) -> list[str]:
    """A reason against lengths that are no multiples of a size, or none."""
    if all(length and length % size == 0 for length in lengths.values()):
        return []
    got = ", ".join(f"{name}={length}" for name, length in lengths.items())
    return [f"lengths must be multiples of {size}, got {got}"]
