"""What an embedder is: the interfaces that the stacks dispatch on.

An *embedder* turns ids (or a mapping of ids) into vectors. An *inspectable multi-embedder* does so in two steps that
can be called apart: one embedding per input, then their combination.
"""

import abc
from typing import Any, Generic, TypeVar

import jax.numpy as jnp

from flaxformer.types import Array

Inputs = TypeVar("Inputs")


class Embedder(Generic[Inputs], metaclass=abc.ABCMeta):
    """Turns inputs into vectors of a fixed width. A module that does is `class Mine(nn.Module, Embedder[Array])`."""

    @abc.abstractmethod
    def __call__(
        self, inputs: Inputs, *, segment_ids: Array | None = None, decode: bool = False, enable_dropout: bool = True
    ) -> Array:
        """Embeds `inputs`.

        Args:
          inputs: usually ids `[B T]`.
          segment_ids: `[B T]`, which packed example a token belongs to.
          decode: one token per call; embedders that count positions take the next one.
          enable_dropout: for embedders that drop out.

        Returns:
          `[B T D]`.
        """


class InspectableMultiEmbedder(Embedder[Inputs], metaclass=abc.ABCMeta):
    """An embedder of several inputs whose single embeddings can be looked at before they are combined."""

    @abc.abstractmethod
    def get_individual_embeddings(
        self, inputs: Inputs, *, segment_ids: Array | None = None, decode: bool = False, enable_dropout: bool = True
    ) -> Any:
        """The embedding of each input, uncombined; arguments as for `__call__`."""

    @abc.abstractmethod
    def combine_embeddings(self, embeddings: Any) -> Array:
        """What `get_individual_embeddings` returned, as one `[B T D]` array."""

    def __call__(
        self, inputs: Inputs, *, segment_ids: Array | None = None, decode: bool = False, enable_dropout: bool = True
    ) -> Array:
        embeddings = self.get_individual_embeddings(
            inputs, segment_ids=segment_ids, decode=decode, enable_dropout=enable_dropout
        )
        return self.combine_embeddings(embeddings)


class EmbedderWithDecode(Embedder[Inputs]):
    """Marks embedders for which `decode` means something: `MultiEmbed` passes it to these only."""


class EmbedderWithDeterministic(Embedder[Inputs]):
    """Marks embedders that take `deterministic`: `MultiEmbed` passes it to these only."""


def checked_ids(ids: Array, cast_to: Any = None) -> Array:
    """`ids` after an optional cast.

    Raises:
      ValueError: when they are not integers then.
    """
    ids = jnp.asarray(ids) if cast_to is None else jnp.asarray(ids).astype(cast_to)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"ids have dtype {ids.dtype}; expected an integer type. "
            "Pass integers, or set cast_input_dtype='int32' on the embedder."
        )
    return ids
