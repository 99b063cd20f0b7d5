"""What a traced pass reads: what the model says of itself, and what the caller says instead."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxformer.architectures.example_inputs import LENGTH
from flaxformer.configs.errors import ConfigurationError

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")

Inputs = Mapping[str, jax.ShapeDtypeStruct]
Given = Sequence[int] | jax.ShapeDtypeStruct | jax.Array  # a shape, or what has one and a dtype

_INPUT = re.compile(r"(?P<name>\w+)=(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+))?")


def required_inputs(model: Any, length: int | None, given: Mapping[str, Given]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arguments of a call of `model`, one example of each unless `given` says otherwise.

    Args:
      model: a Linen module. Its method `example_inputs(length)`, if it has one, says what it reads; otherwise its
        arguments with the names of token ids do.
      length: tokens per input; see `stack_input`.
      given: by argument, a shape, or what has a shape and a dtype.

    Raises:
      ConfigurationError: for an argument that the model does not take, and for a model that is called with more than
        it says, or than is given.
    """
    signature = inspect.signature(type(model).__call__).parameters
    unknown = sorted(given.keys() - signature.keys())
    if unknown:
        raise ConfigurationError(
            f"inputs name {', '.join(unknown)}, which {type(model).__name__} does not take; expected some of "
            f"{', '.join(list(signature)[1:])}."
        )
    known = _described(model, signature, length)
    inputs = {**known, **{name: _structure(name, value, known) for name, value in given.items()}}
    required = [name for name, p in signature.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    if not inputs or not inputs.keys() >= set(required):
        raise ConfigurationError(
            f"{type(model).__name__} is called with {', '.join(required) or 'nothing'}; expected a model over tokens, "
            f"called with some of {', '.join(TOKENS)}, or one with a method example_inputs. Say what its arguments are "
            "with inputs={name: shape}, on the command line --input NAME=1x8x8x3, or name another macro with root=...."
        )
    return inputs


def _described(model: Any, signature: Mapping[str, Any], length: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    if hasattr(model, "example_inputs"):
        return model.example_inputs(length)
    tokens = jax.ShapeDtypeStruct((1, length or LENGTH), jnp.int32)
    return {name: tokens for name in signature if name in TOKENS}


def _structure(name: str, value: Given, known: Inputs) -> jax.ShapeDtypeStruct:
    if not isinstance(value, Sequence):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    dtype = known[name].dtype if name in known else jnp.int32 if name in TOKENS else jnp.float32
    return jax.ShapeDtypeStruct(tuple(value), dtype)


def processed_tokens(inputs: Inputs) -> int | None:
    """How many tokens are encoded and decoded; None when some of `inputs` are no token ids."""
    if not all(name in TOKENS and jnp.issubdtype(each.dtype, jnp.integer) for name, each in inputs.items()):
        return None
    return sum(math.prod(each.shape) for name, each in inputs.items() if name != "decoder_target_tokens")


def parse_input(text: str) -> tuple[str, Given]:
    """An argument's name, and its shape or structure, from `NAME=SHAPE` or `NAME=SHAPE:DTYPE`.

    Raises:
      ConfigurationError: for other text, and for a type that there is not.

    >>> parse_input("images=1x224x224x3")
    ('images', (1, 224, 224, 3))
    >>> parse_input("images=1x8:bfloat16")
    ('images', ShapeDtypeStruct(shape=(1, 8), dtype=bfloat16))
    """
    found = _INPUT.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"the input {text!r} is not understood; expected NAME=SHAPE or NAME=SHAPE:DTYPE, for example "
            "images=1x224x224x3 or tokens=1x77:int32."
        )
    shape = tuple(map(int, found["shape"].split("x")))
    if found["dtype"] is None:
        return found["name"], shape
    try:
        return found["name"], jax.ShapeDtypeStruct(shape, jnp.dtype(found["dtype"]))
    except TypeError as error:
        raise ConfigurationError(
            f"the input {text!r} is of type {found['dtype']!r}; expected one of JAX, such as float32 or int32."
        ) from error
