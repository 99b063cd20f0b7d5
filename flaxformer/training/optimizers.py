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
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.linen import partitioning

from flaxformer.errors import WrongTypeError
from flaxformer.training import factoring
from flaxformer.training.factoring import FactorRules, standard_logical_factor_rules
from flaxformer.training.parameter_map import HParamMap, path_of
from flaxformer.training.schedules import Schedule
from flaxformer.types import DType

__all__ = ["adafactor", "adamw", "clip_and_accumulate", "logical_axes", "partitioned", "standard_logical_factor_rules"]

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
    multiply_by_parameter_scale: bool | HParamMap = True,
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
    factor_map: HParamMap | None = None,
    max_parameter_scale: float | None = None,
    skip_nan_updates: bool = False,
) -> Transformation:
    """Adafactor: the second moment of a matrix from one row and one column, steps relative to the parameter's size.

    Args:
      learning_rate: relative step size, or a schedule of it.
      factored: keep a row and a column of statistics instead of a matrix.
      multiply_by_parameter_scale: multiply updates by the root mean square of the parameter; of those that an
        `HParamMap` says.
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

      factor_map: parameter -> a role per axis, by regular expressions: see `factoring.factorings_by_path`. Excludes
        `logical_factor_rules`.
      max_parameter_scale: largest scale of a parameter; no limit when None.
      skip_nan_updates: entries of parameters and statistics that would become NaN keep their old value.

    Raises:
      ValueError: for rules without axis names, for a map with `factored=False` or beside rules, and for maps of
        another type.

    Source: Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235. By `optax.adafactor`'s parts, except along
    logical axes.
    """
    _check_maps(factored, factor_map, logical_factor_rules, multiply_by_parameter_scale)
    plain = isinstance(multiply_by_parameter_scale, bool) and max_parameter_scale is factor_map is None
    if logical_factor_rules is None and plain:
        scaled = [optax.scale_by_factored_rms(factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon1)]
        clip, scale_by_param = optax.clip_by_block_rms, optax.scale_by_param_block_rms
    else:
        if logical_factor_rules is not None:
            treat = _by_logical_axes(logical_axes, logical_factor_rules, factored, min_dim_size_to_factor)
        else:
            smallest = min_dim_size_to_factor if factored else float("inf")
            treat = functools.partial(
                factoring.factorings_by_path, factor_map=factor_map, min_dim_size_to_factor=smallest
            )
        scaled = [factoring.scale_by_factored_rms(treat, decay_rate, step_offset, epsilon1)]
        clip = functools.partial(factoring.clip_by_rms, treat)
        scale_by_param = functools.partial(
            factoring.scale_by_param_rms, treat, maximum=max_parameter_scale, which=multiply_by_parameter_scale
        )
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
    if skip_nan_updates:
        transformation = factoring.skip_not_a_number(transformation)
    return clip_and_accumulate(transformation, global_norm_clip_threshold, accumulate_steps)


def _check_maps(factored: bool, factor_map: Any, rules: FactorRules | None, scaled: Any) -> None:
    for name, value, kinds in (
        ("factor_map", factor_map, (HParamMap, type(None))),
        ("multiply_by_parameter_scale", scaled, (HParamMap, bool)),
    ):
        if not isinstance(value, kinds):
            raise WrongTypeError(
                f"{name} is a {type(value).__name__}; expected one of {', '.join(k.__name__ for k in kinds)}. "
                "Write HParamMap(((regular expression, value), ...)) for values by parameter."
            )
    if factor_map is not None and (not factored or rules is not None):
        raise ValueError(
            f"factor_map was given with factored={factored} and logical_factor_rules={rules}; expected factored=True "
            "and no rules: a map says how each parameter is factored. Leave one of them out."
        )


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


Selector = str | Sequence[str] | Callable[[str, Any], bool]


def partitioned(
    parts: Sequence[tuple[Selector, Transformation | Callable[..., Transformation]]],
    logical_axes: LogicalAxes | None = None,
) -> Transformation:
    """An optimizer per subset of the parameters; parameters in none of them stay as they are, without statistics.

    Args:
      parts: pairs of a selector and an optimizer, or a function that returns one, which is told `logical_axes` where
        it has an argument of that name. A selector is a regular expression that the whole path matches, several of
        them, or a function `(path, parameter) -> bool`; paths are joined by '/'.
      logical_axes: axis names of the parameters.

    Raises:
      ValueError: when a parameter is selected more than once, and when a selector selects none.

    >>> only = partitioned([(r".*/bias", optax.sgd(1.0))])
    >>> params = {"a": {"bias": 1.0, "kernel": 1.0}}
    >>> jax.tree.map(float, optax.apply_updates(params, only.update(params, only.init(params), params)[0]))
    {'a': {'bias': 0.0, 'kernel': 1.0}}
    """
    chosen = {str(number): told(optimizer, lambda: logical_axes) for number, (_, optimizer) in enumerate(parts)}

    def label(keys: Any, param: Any) -> str:
        found = [str(number) for number, (selector, _) in enumerate(parts) if _selects(selector, path_of(keys), param)]
        if len(found) > 1:
            raise ValueError(
                f"the parameter {path_of(keys)} is selected by the parts {', '.join(found)}; expected at most one. "
                "Make the selectors exclude each other."
            )
        return found[0] if found else "frozen"

    def labels(params: Any) -> Any:
        given = jax.tree_util.tree_map_with_path(label, params)
        unused = sorted(chosen.keys() - set(jax.tree.leaves(given)))
        if unused:
            raise ValueError(
                f"the selectors {[parts[int(number)][0] for number in unused]} select no parameter; expected each to "
                "select at least one. They match whole paths, such as 'encoder/encoder_norm/scale'."
            )
        return given

    return optax.partition({**chosen, "frozen": optax.set_to_zero()}, labels)


def told(
    optimizer: Transformation | Callable[..., Transformation], find_axes: Callable[[], LogicalAxes | None]
) -> Transformation:
    """`optimizer`, or what it returns as a function, which is told `logical_axes` if it has such an argument."""
    if not callable(optimizer):
        return optimizer
    wants_axes = "logical_axes" in inspect.signature(optimizer).parameters
    return optimizer(logical_axes=find_axes()) if wants_axes else optimizer()


def _selects(selector: Selector, path: str, param: Any) -> bool:
    if callable(selector):
        return selector(path, param)
    patterns = [selector] if isinstance(selector, str) else selector
    return any(re.fullmatch(pattern, path) for pattern in patterns)


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
