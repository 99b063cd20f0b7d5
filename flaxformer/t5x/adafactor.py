"""`t5x.adafactor`: hyper-parameters now, the optimizer when the learning rate and the parameters are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from flaxformer.training import optimizers
from flaxformer.training.factoring import FactorDim, FactorRules
from flaxformer.training.optimizers import standard_logical_factor_rules
from flaxformer.training.parameter_map import HParamMap
from flaxformer.types import DType

__all__ = ["Adafactor", "FactorDim", "HParamMap", "standard_logical_factor_rules"]


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor's hyper-parameters, under T5X's names: see `flaxformer.training.optimizers.adafactor`.

    >>> definition = Adafactor(decay_rate=0.8, step_offset=0)
    >>> optimizer = definition(learning_rate=0.001)

    Attributes:
      learning_rate: None where the training run gives one.
    """

    learning_rate: Any = None
    factored: bool = True
    multiply_by_parameter_scale: bool | HParamMap = True
    beta1: float | None = None
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    weight_decay_rate: float | None = None
    min_dim_size_to_factor: int = 128
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    dtype_momentum: DType | str = jnp.float32
    factor_map: HParamMap | None = None
    logical_factor_rules: FactorRules | None = None
    weight_decay_rate_lr_exponent: float | None = None
    global_norm_clip_threshold: float | None = None
    max_parameter_scale: float | None = None
    skip_nan_updates: bool = False

    def __call__(self, learning_rate: Any = None, logical_axes: Any = None) -> optax.GradientTransformation:
        """The optimizer.

        Args:
          learning_rate: a number or a schedule; that of the hyper-parameters when None.
          logical_axes: the parameters' axis names, for `logical_factor_rules`.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if learning_rate is not None:
            options["learning_rate"] = learning_rate
        return optimizers.adafactor(**options, logical_axes=logical_axes)
