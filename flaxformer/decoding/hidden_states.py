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


def is_last_norm(module: nn.Module, method: str) -> bool:
    """Which outputs Flax is to capture: those of the norm behind the decoder's last layer."""
    return module.name == _LAST_NORM and method == "__call__"


def last_hidden(intermediates: Mapping[str, Any]) -> Float[Array, "R T D"]:
    """The hidden states that the logits are made from: what was sown as such, else the output of the last norm.

    Raises:
      ValueError: when the model has neither.
    """
    found: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        names = [key.key for key in path if hasattr(key, "key")]
        for name in (_SOWN, _LAST_NORM):
            if name in names:
                found[name] = leaf
    if not found:
        raise ValueError(
            f"the model shows no last hidden states; expected a module named '{_LAST_NORM}' or a value sown as "
            f"'{_SOWN}' in 'intermediates'. Contrastive search cannot do without: sow them right before the logits."
        )
    return found[_SOWN] if _SOWN in found else found[_LAST_NORM]
