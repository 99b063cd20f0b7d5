"""Finding the last hidden states of a model that only returns logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Float

from flaxformer.types import Array

_SOWN = "pre_logits_layer"
_LAST_NORM = "decoder_norm"
_LAST_DROPOUT = "output_dropout"  # behind the last layer of stacks that have no last norm, such as BART's
_SHOWN = (_SOWN, _LAST_NORM, _LAST_DROPOUT)


def is_last(module: nn.Module, method: str) -> bool:
    """Which outputs Flax is to capture: those of the norm and the dropout behind the decoder's last layer."""
    return module.name in (_LAST_NORM, _LAST_DROPOUT) and method == "__call__"


def last_hidden(intermediates: Mapping[str, Any]) -> Float[Array, "R T D"]:
    """The hidden states that the logits are made from.

    That is what was sown as such, else the output of the last norm, else that of the dropout in its place.

    Raises:
      ValueError: when the model has none of them.
    """
    found: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        names = [key.key for key in path if hasattr(key, "key")]
        found |= {name: leaf for name in _SHOWN if name in names}
    for name in _SHOWN:
        if name in found:
            return found[name]
    raise ValueError(
        f"the model shows no last hidden states; expected a module named '{_LAST_NORM}' or a value sown as "
        f"'{_SOWN}' in 'intermediates'. Contrastive search cannot do without: sow them right before the logits."
    )
