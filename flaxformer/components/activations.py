"""Activations by name: those of `flax.linen`, and those that it has no name for."""

import difflib
from collections.abc import Mapping

import flax.linen as nn
import jax
from jaxtyping import Float

from flaxformer.errors import UnknownAttributeError
from flaxformer.types import Activation, Array


def gelu_exact(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x · Φ(x)` by the error function; `flax.linen.gelu` approximates it by tanh (Hendrycks and Gimpel 2016)."""
    return nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x · sigmoid(1.702 x)`, a coarser approximation (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def linear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The identity."""
    return x


NAMED: Mapping[str, Activation] = {"gelu_exact": gelu_exact, "linear": linear, "quick_gelu": quick_gelu}


def resolve_activation(activation: str | Activation) -> Activation:
    """The function that a name means; functions as they are.

    Raises:
      ValueError: for what is neither.

    >>> resolve_activation("quick_gelu").__name__, resolve_activation("relu").__name__
    ('quick_gelu', 'relu')
    """
    if isinstance(activation, str):
        function = NAMED.get(activation) or getattr(nn, activation, None)
        if function is None:
            names = [*NAMED, *(n for n in dir(nn.activation) if n.islower() and hasattr(nn, n) and n[0] != "_")]
            near = difflib.get_close_matches(activation, names, n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else "A function is taken as well."
            raise UnknownAttributeError(
                f"unknown activation {activation!r}; expected 'linear' or a name in flax.linen. {hint}"
            )
        return function
    if not callable(activation):
        raise ValueError(f"activation {activation!r} is neither a name nor a function; write 'gelu' or a function.")
    return activation
