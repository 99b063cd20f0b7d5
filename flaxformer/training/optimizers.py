"""Adafactor with T5X's defaults, and AdamW: optax transformations with clipping and accumulation built in.

>>> import jax.numpy as jnp
>>> optimizer = adamw(0.1)
>>> params = {"kernel": jnp.ones((2, 2))}
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update({"kernel": jnp.ones((2, 2))}, state, params)
>>> float(optax.apply_updates(params, updates)["kernel"][0, 0]) < 1
True
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from flax.linen import partitioning

from flaxformer.training import factoring
from flaxformer.training.factoring import FactorRules, standard_logical_factor_rules
from flaxformer.training.schedules import Schedule
from flaxformer.types import DType

__all__ = ["adafactor", "adamw", "clip_and_accumulate", "logical_axes", "standard_logical_factor_rules"]

Transformation = optax.GradientTransformation
LogicalAxes = Any


def logical_axes(variables: Mapping[str, Any]) -> LogicalAxes | None:
    """The logical axis names of the parameters in `variables`, from `params_axes`; None where there are none."""
    if "params_axes" not in variables:
        return None
    return partitioning.get_axis_names(variables["params_axes"])


def adafactor(
    learning_rate: float | Schedule | None = None,
    *,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    weight_decay_rate_lr_exponent: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    dtype_momentum: DType | str = jnp.float32,
    global_norm_clip_threshold: float | None = None,
    accumulate_steps: int = 1,
    logical_factor_rules: FactorRules | None = None,
    logical_axes: LogicalAxes | None = None,
) -> Transformation:
    """Adafactor: the second moment of a matrix from one row and one column, steps relative to the parameter's size.

    Args:
      learning_rate: relative step size, or a schedule of it.
      factored: keep a row and a column of statistics instead of a matrix.
      multiply_by_parameter_scale: multiply updates by the root mean square of the parameter.
      beta1: momentum; none when None.
      decay_rate: exponent of the decay of the second moment, `β₂ = 1 - (t + 1)^-decay_rate`.
      step_offset: subtracted from `t`, for fine-tuning.
      clipping_threshold: largest root mean square of an update; no limit when None.
      weight_decay_rate: fraction of a parameter removed per step, not multiplied by the learning rate.
      weight_decay_rate_lr_exponent: multiply the weight decay (1 when None) by the learning rate to this power.
      min_dim_size_to_factor: smallest size of both axes of a factored matrix.
      epsilon1: added to squared gradients.
      epsilon2: least scale of a parameter.
      dtype_momentum: of the momentum.
      global_norm_clip_threshold: largest norm of all gradients together; no limit when None.
      accumulate_steps: gradients averaged before each update.
      logical_factor_rules: axis name -> role, for scanned models and kernels of rank 3 and more: see
        `standard_logical_factor_rules`.
      logical_axes: axis names of the parameters, needed with the rules: see `logical_axes`.

    Raises:
      ValueError: for rules without axis names.

    Source: Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235. By `optax.adafactor`'s parts, except along
    logical axes.
    """
    if logical_factor_rules is None:
        scaled = [optax.scale_by_factored_rms(factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon1)]
        clip, scale_by_param = optax.clip_by_block_rms, optax.scale_by_param_block_rms
    else:
        treat = _by_logical_axes(logical_axes, logical_factor_rules, factored, min_dim_size_to_factor)
        scaled = [factoring.scale_by_factored_rms(treat, decay_rate, step_offset, epsilon1)]
        clip = functools.partial(factoring.clip_by_rms, treat)
        scale_by_param = functools.partial(factoring.scale_by_param_rms, treat)
    decay = _weight_decay(weight_decay_rate, weight_decay_rate_lr_exponent, learning_rate)
    parts = scaled + [
        clip(clipping_threshold) if clipping_threshold is not None else None,
        optax.scale_by_learning_rate(learning_rate, flip_sign=False) if learning_rate is not None else None,
        scale_by_param(epsilon2) if multiply_by_parameter_scale else None,
        optax.ema(beta1, debias=False, accumulator_dtype=jnp.dtype(dtype_momentum)) if beta1 is not None else None,
        optax.add_decayed_weights(decay) if decay is not None else None,
        optax.scale(-1),
    ]
    transformation = optax.chain(*(part for part in parts if part is not None))
    return clip_and_accumulate(transformation, global_norm_clip_threshold, accumulate_steps)


def _by_logical_axes(axes: LogicalAxes | None, rules: FactorRules, factored: bool, smallest: int) -> factoring.Treat:
    if axes is None:
        raise ValueError(
            "logical_factor_rules were given without logical_axes; expected the axis names of the parameters. "
            "Pass logical_axes=optimizers.logical_axes(variables), or give the runner the function uncalled."
        )
    return lambda params: factoring.factorings(params, axes, rules, factored=factored, min_dim_size_to_factor=smallest)


def _weight_decay(rate: float | None, exponent: float | None, learning_rate: Any) -> float | Schedule | None:
    if exponent is None:
        return rate
    factor = 1.0 if rate is None else rate
    schedule: Schedule = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    return lambda step: factor * schedule(step) ** exponent


def adamw(
    learning_rate: float | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    global_norm_clip_threshold: float | None = None,
    accumulate_steps: int = 1,
) -> Transformation:
    """`optax.adamw`, with the clipping and accumulation of this module; no weight decay unless asked for.

    Args:
      learning_rate: step size, or a schedule of it.
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: fraction of a parameter removed per step, times the learning rate.
      weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
      global_norm_clip_threshold: largest norm of all gradients together; no limit when None.
      accumulate_steps: gradients averaged before each update.

    Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    transformation = optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mask=weight_decay_mask
    )
    return clip_and_accumulate(transformation, global_norm_clip_threshold, accumulate_steps)


def clip_and_accumulate(
    optimizer: Transformation, global_norm_clip_threshold: float | None = None, accumulate_steps: int = 1
) -> Transformation:
    """`optimizer` fed with the mean of several gradients, clipped to a norm.

    Every call but the last of each `accumulate_steps` changes no parameter. The mean equals the gradient of one large
    batch when the loss of each small batch has the same normalising factor.

    Raises:
      ValueError: for fewer than one step.
    """
    if accumulate_steps < 1:
        raise ValueError(f"accumulate_steps is {accumulate_steps}; expected at least 1. Use 1 for no accumulation.")
    if global_norm_clip_threshold is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(global_norm_clip_threshold), optimizer)
    if accumulate_steps > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate_steps).gradient_transformation()
    return optimizer
