"""The door of the positions room."""

from __future__ import annotations

import dataclasses

from jaxtyping import Float, Int

from flaxformer.types import Array


@dataclasses.dataclass(frozen=True)
class PositionScheme:
    """Says where a token is in one of three ways, each of them nothing unless a subclass says otherwise.

    | method   | acts on                                | for example             |
    |----------|----------------------------------------|-------------------------|
    | `rotate` | queries and keys, before the cache     | `Rotary`                |
    | `bias`   | attention scores                       | relative position bias  |
    | `embed`  | the input of a stack                   | sinusoidal, learned     |

    Positions are data, `[#B T]` integers: they restart in packed sequences and differ per row while decoding.

    >>> scheme = PositionScheme()
    >>> scheme.rotate("x", None), scheme.bias(None, None), scheme.embed(None)
    ('x', None, None)
    """

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*#B T"]) -> Float[Array, "*B T N H"]:
        """Queries or keys, turned by their positions."""
        return x

    def bias(
        self, q_positions: Int[Array, "#B T"], k_positions: Int[Array, "#B S"]
    ) -> Float[Array, "#B #N T S"] | None:
        """What to add to the attention scores, or None."""
        return None

    def embed(self, positions: Int[Array, "#B T"]) -> Float[Array, "#B T D"] | None:
        """What to add to the token embeddings, or None."""
        return None
