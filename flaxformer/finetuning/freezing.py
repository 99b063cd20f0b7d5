"""Training some of the parameters and leaving the others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

from flaxformer.finetuning.paths import Params, chosen, flatten, matching, unflatten


def train_only(optimizer: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """`optimizer` for the parameters that the patterns match; the others never change and have no optimizer state.

        optimizer = train_only(optax.adamw(1e-4), [".*/layer_norm/scale", "decoder/logits_dense/.*"])

    Args:
      optimizer: any optax transformation.
      patterns: regular expressions for whole paths of parameters; see `matching`.

    Raises:
      ValueError: from `init`, for a pattern that matches nothing.
    """

    def labels(params: Params) -> Any:
        return jax.tree.map(lambda trained: "trained" if trained else "frozen", matching(params, patterns))

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def split(params: Params, patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that the patterns match, and the others; `join` puts them together again.

    Differentiating with respect to the first tree alone spares the gradients of the frozen kernels:

        trained, frozen = split(params, patterns)
        gradients = jax.grad(lambda trained: loss(join(trained, frozen)))(trained)

    Raises:
      ValueError: for a pattern that matches nothing.
    """
    flat = flatten(params)
    taken = chosen(flat, patterns)
    trained = {path: flat.pop(path) for path in taken}
    return unflatten(trained), unflatten(flat)


def join(*trees: Params) -> dict[str, Any]:
    """The trees of parameters, which share no path, as one.

    Raises:
      ValueError: for a path that two of them have.
    """
    joined: dict[str, Any] = {}
    for tree in trees:
        flat = flatten(tree)
        twice = sorted(joined.keys() & flat.keys())
        if twice:
            raise ValueError(f"{', '.join(twice)} is in two trees; expected it in one. Use split's results.")
        joined |= flat
    return unflatten(joined)
