"""Several inputs, one embedding: `DictEmbedder`, and the `MultiEmbed` that the T5 stacks use."""

from __future__ import annotations

import enum
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Float

from flaxformer.components.calling import call_part
from flaxformer.components.embedder import (
    Embedder,
    EmbedderWithDecode,
    EmbedderWithDeterministic,
    InspectableMultiEmbedder,
)
from flaxformer.errors import UnknownNameError
from flaxformer.step import Step
from flaxformer.types import Array


class EmbedCombineMethod(enum.IntEnum):
    """How `MultiEmbed` combines: by adding, or by concatenating along the last axis."""

    SUM = 1
    CONCAT = 2


class DictEmbedder(nn.Module, InspectableMultiEmbedder[Mapping[str, Any]]):
    """Embeds each entry of a mapping with the embedder of the same name, and combines the results.

    Attributes:
      embedders: name to embedder.
      embeddings_combiner: list of `[B T D]` arrays, in the order of the inputs, to one array.
    """

    embedders: Mapping[str, Embedder[Any]]
    embeddings_combiner: Callable[[Sequence[Array]], Any] = sum

    def get_individual_embeddings(
        self,
        inputs: Mapping[str, Any],
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        enable_dropout: bool = True,
    ) -> Sequence[Array]:
        """The embedding of each input, in the order of the inputs.

        Raises:
          ValueError: when the names of the inputs are not those of the embedders.
        """
        if set(inputs) != set(self.embedders):
            raise ValueError(
                f"inputs are named {sorted(inputs)}; expected one for each embedder: {sorted(self.embedders)}. "
                "Pass exactly those, or build the DictEmbedder with other embedders."
            )
        step = Step.from_keywords(decode=decode)
        return [
            call_part(self.embedders[name], x, step=step, segment_ids=segment_ids, enable_dropout=enable_dropout)
            for name, x in inputs.items()
        ]

    def combine_embeddings(self, embeddings: Sequence[Array]) -> Array:
        return self.embeddings_combiner(embeddings)


class MultiEmbed(nn.Module):
    """Embeds keyword inputs (`token_ids=..., position_ids=...`) and adds or concatenates the results.

    Attributes:
      embedders: name to embedder. Any module or function that takes ids fits.
      sow_intermediates: keeps the combined embedding as `intermediates/output`.
      capture_gradients: adds a variable of zeros, `grads/output_grad`, to the result while the collection `grads` is
        mutable; its gradient is the gradient with respect to the embedded input. Needs `sow_intermediates`.
    """

    embedders: dict[str, Embedder[Array] | Callable[[Array], Array]]
    sow_intermediates: bool = False
    capture_gradients: bool = False

    def get_individual_embeddings(
        self, decode: bool = False, deterministic: bool = False, segment_ids: Array | None = None, **inputs: Array
    ) -> dict[str, Array]:
        """The embedding of each input, by name.

        Args:
          decode: passed to every `EmbedderWithDecode`.
          deterministic: passed to every `EmbedderWithDeterministic`.
          segment_ids: passed to every `Embedder`, and embedded too if an embedder has that name.
          **inputs: ids by embedder name. An embedder without an input is skipped.

        Raises:
          UnknownNameError: for an input without an embedder.
        """
        if "segment_ids" in self.embedders and segment_ids is not None:
            inputs["segment_ids"] = segment_ids
        unknown = sorted(set(inputs) - set(self.embedders))
        if unknown:
            raise UnknownNameError(
                f"inputs {unknown} have no embedder; expected names among {sorted(self.embedders)}. "
                "Add an embedder of that name, for example a position_embedder_factory for position_ids."
            )
        embeddings = {}
        for name, ids in inputs.items():
            embedder, keywords = self.embedders[name], {}
            if isinstance(embedder, EmbedderWithDecode):
                keywords["decode"] = decode
            if isinstance(embedder, EmbedderWithDeterministic):
                keywords["deterministic"] = deterministic
            if isinstance(embedder, Embedder):
                keywords["segment_ids"] = segment_ids
            embeddings[name] = embedder(ids, **keywords)
        return embeddings

    def combine_embeddings(
        self, embeddings: Mapping[str, Array], combine_method: EmbedCombineMethod = EmbedCombineMethod.SUM
    ) -> Array:
        """Adds or concatenates, in the sorted order of the names.

        Raises:
          ValueError: when there is nothing to combine, or for a method that is neither SUM nor CONCAT.
        """
        if not embeddings:
            raise ValueError(f"there are no embeddings to combine; expected at least one of {sorted(self.embedders)}.")
        in_order = [embeddings[name] for name in sorted(embeddings)]
        if combine_method == EmbedCombineMethod.SUM:
            return functools.reduce(operator.add, in_order)
        if combine_method == EmbedCombineMethod.CONCAT:
            return jnp.concatenate(in_order, axis=-1)
        raise ValueError(
            f"combine_method is {combine_method!r}; expected EmbedCombineMethod.SUM or EmbedCombineMethod.CONCAT."
        )

    @nn.compact
    def __call__(
        self,
        combine_method: EmbedCombineMethod = EmbedCombineMethod.SUM,
        *,
        segment_ids: Array | None = None,
        decode: bool = False,
        deterministic: bool = False,
        **inputs: Array,
    ) -> Float[Array, "*ids D"]:
        """Embeds and combines; arguments as for the two methods.

        Raises:
          ValueError: for `capture_gradients` without `sow_intermediates`.
        """
        if self.capture_gradients and not self.sow_intermediates:
            raise ValueError(
                "capture_gradients=True came with sow_intermediates=False; expected both or neither. "
                "Set sow_intermediates=True as well."
            )
        embeddings = self.get_individual_embeddings(decode, deterministic, segment_ids, **inputs)
        combined = self.combine_embeddings(embeddings, combine_method)
        if self.sow_intermediates:
            self.sow("intermediates", "output", combined)
        if self.capture_gradients and self.is_mutable_collection("grads"):
            zeros = partitioning.variable_with_axes(
                "grads", "output_grad", jnp.zeros, combined.shape, combined.dtype, axes=("batch", "length", "embed")
            )
            combined = combined + zeros.value
        return combined
