"""What training carries from step to step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Int, Key

from flaxformer.training.batches import Batch, module_inputs
from flaxformer.training.optimizers import logical_axes, told
from flaxformer.types import Array

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; a pytree, so that it can be jitted, donated, sharded and saved.

    Attributes:
      step: number of steps done.
      params: the model's parameters.
      opt_state: the optimizer's state.
      dropout_key: base key; a step folds its number into it, so that step `n` drops the same units in every run.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    dropout_key: Key[Array, ""]

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation, dropout_key: Key[Array, ""]) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), dropout_key)


def initialize(
    model: nn.Module, optimizer: Optimizer, batch: Batch, seed: int = 0
) -> tuple[TrainState, optax.GradientTransformation]:
    """Fresh parameters for `model`, and the optimizer's state for them, in one compilation.

    Args:
      model: called with the features of `batch`.
      optimizer: an optax transformation, or a function that returns one; it is told `logical_axes`, the axis names of
        the parameters, if it has an argument of that name.
      batch: gives the shapes.
      seed: of the parameters and of dropout.

    Returns:
      The state before the first step, and the optimizer.
    """
    create, optimizer = initializer(model, optimizer, batch, seed)
    return create(), optimizer


def initializer(
    model: nn.Module, optimizer: Optimizer, batch: Batch, seed: int = 0
) -> tuple[Callable[[], TrainState], optax.GradientTransformation]:
    """A function that does the work of `initialize`; `jax.eval_shape` of it costs none.

    Args:
      model: as for `initialize`, like the other arguments.
      optimizer: see there.
      batch: see there.
      seed: see there.
    """
    arguments, keywords = module_inputs(batch)
    params_key, dropout_key = jax.random.split(jax.random.key(seed))

    def init(key: Key[Array, ""]) -> Mapping[str, Any]:
        return model.init({"params": key}, *arguments, **keywords, enable_dropout=False)

    if callable(optimizer):
        optimizer = told(optimizer, lambda: logical_axes(jax.eval_shape(init, params_key)))

    @jax.jit
    def create(key: Key[Array, ""], dropout_key: Key[Array, ""]) -> TrainState:
        return TrainState.create(init(key)["params"], optimizer, dropout_key)

    return functools.partial(create, params_key, dropout_key), optimizer
