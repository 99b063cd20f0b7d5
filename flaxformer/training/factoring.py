"""Adafactor's factored statistics along named axes, for stacked and higher-rank parameters.

`optax.adafactor` factors the two largest axes of a parameter. That is wrong where one of them counts layers (parameters
stacked by a scan: every layer needs statistics of its own) or heads (an `[embed heads kv]` kernel is a matrix from
`embed` to `heads · kv`). Here each axis has a role, found by its logical name:

* *row*, *column*: the two sides of the matrix; each may be several axes. Statistics are means over the other side.
* *batch*: the parameter is a stack of independent ones along this axis.
* *none*: an axis of a parameter that is not factored.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from optax import FactoredState

from flaxformer.training.parameter_map import HParamMap, path_of
from flaxformer.types import Array


class FactorDim(enum.Enum):
    """The role of one axis."""

    NONE = "none"
    BATCH = "batch"
    ROW = "row"
    COLUMN = "column"


_SPELLINGS = {"row": "row", "col": "column", "column": "column", "batch": "batch", "none": "none"}
_SPELLINGS |= {"unfactorized": "none"}

FactorRules = Mapping[str, FactorDim | str]


def standard_logical_factor_rules() -> dict[str, FactorDim]:
    """Logical axis name -> role, for the axes of this library's parameters.

    >>> standard_logical_factor_rules()["layers"].name
    'BATCH'
    """
    columns = "vocab mlp heads kv joined_kv q_wi_fused o_wo_fused multiquery_heads kv_fused mlp_activations"
    return (
        dict.fromkeys(columns.split(), FactorDim.COLUMN)
        | {"embed": FactorDim.ROW}
        | dict.fromkeys(("relpos_buckets", "abspos_buckets", "layer_norm_scale", "unmodeled"), FactorDim.NONE)
        | dict.fromkeys(("layers", "stack"), FactorDim.BATCH)
    )


def roles(axes: Sequence[str | None], rules: FactorRules, path: str) -> tuple[FactorDim, ...]:
    """The role of each axis of one parameter; without both a row and a column it is not factored.

    Args:
      axes: logical axis names of the parameter.
      rules: axis name -> role, or its name.
      path: the parameter, for messages.
    """
    return _as_matrix([_role(axis, rules, path) for axis in axes], path, axes)


def _as_matrix(found: Sequence[FactorDim], path: str, axes: Sequence[str | None]) -> tuple[FactorDim, ...]:
    matrix = {FactorDim.ROW, FactorDim.COLUMN}
    if not matrix <= set(found):
        return tuple(FactorDim.NONE if role in matrix else role for role in found)
    if FactorDim.NONE in found:
        names = ", ".join(role.value for role in found)
        raise ValueError(
            f"{path} has axes {tuple(axes)} with the roles {names}; expected no 'none' beside rows and columns. "
            "Make that axis a row, a column or batch in logical_factor_rules."
        )
    return tuple(found)


def _spelled(role: FactorDim | str | None) -> FactorDim | None:
    if isinstance(role, str):
        return FactorDim(_SPELLINGS[role.lower()]) if role.lower() in _SPELLINGS else None
    return role


def _role(axis: str | None, rules: FactorRules, path: str) -> FactorDim:
    role = FactorDim.NONE if axis is None else _spelled(rules.get(axis))
    if role is None:
        raise ValueError(
            f"{path} has the axis {axis!r}, and logical_factor_rules gives it {rules.get(axis or '')!r}; expected one "
            f"of {', '.join(_SPELLINGS)}. Add the axis to the rules, or correct its role."
        )
    return role


class Factoring(NamedTuple):
    """How one parameter is treated.

    Attributes:
      rows: axes of one side; empty when not factored.
      columns: axes of the other side.
      averaged: axes over which root mean squares are taken: all but batch axes.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    averaged: tuple[int, ...]


Treat = Callable[[Any], Any]


def _largest_axes(shape: Sequence[int], min_dim_size_to_factor: float) -> Factoring:
    """Rows and columns are the two largest axes, if both are large enough."""
    everything = tuple(range(len(shape)))
    order = [int(axis) for axis in np.argsort(shape, kind="stable")]
    if len(shape) < 2 or shape[order[-2]] < min_dim_size_to_factor:
        return Factoring((), (), everything)
    return Factoring((order[-2],), (order[-1],), everything)


def factorings(
    params: Any, logical_axes: Any, rules: FactorRules, *, factored: bool = True, min_dim_size_to_factor: int = 128
) -> Any:
    """How each parameter is treated: a `Factoring` at each leaf of `params`.

    Parameters of rank 2 or less without a batch axis go by their size, as in `optax.adafactor`.

    Raises:
      ValueError: for a parameter without one axis name per axis, and for an axis without a role.
    """
    names: dict[str, Any] = traverse_util.flatten_dict(logical_axes, sep="/")

    def treat(key_path: Any, param: Array) -> Factoring:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        axes = names.get(path)
        if axes is None and param.ndim > 2 or axes is not None and len(axes) != param.ndim:
            raise ValueError(
                f"{path} of shape {param.shape} has the logical axes {axes}; expected {param.ndim} names. "
                "Pass logical_axes made from this model's params_axes."
            )
        by_axis = roles(axes, rules, path) if axes else ()
        return _factoring(param.shape, by_axis, min_dim_size_to_factor if factored else np.inf, factored)

    return jax.tree_util.tree_map_with_path(treat, params)


def factorings_by_path(params: Any, factor_map: HParamMap | None, min_dim_size_to_factor: float = 128) -> Any:
    """As `factorings`, by rules over the paths of parameters.

    Args:
      params: the parameters.
      factor_map: parameter -> a role per axis, or None for the two largest axes; None means that for all.
      min_dim_size_to_factor: smallest size of both axes of a factored matrix of rank 2.

    Raises:
      ValueError: for a parameter that no rule matches, and for other than one role per axis.
    """

    def treat(key_path: Any, param: Array) -> Factoring:
        path = path_of(key_path)
        rule = None if factor_map is None else factor_map[path]
        if rule is None:
            return _largest_axes(param.shape, min_dim_size_to_factor)
        found = [_spelled(role) for role in rule]
        if len(found) != param.ndim or None in found:
            raise ValueError(
                f"factor_map gives {path} of shape {param.shape} the roles {tuple(rule)}; expected {param.ndim} of "
                f"{', '.join(_SPELLINGS)}, one per axis, or None. Correct the rule."
            )
        known = [role for role in found if role is not None]
        return _factoring(param.shape, _as_matrix(known, path, (None,) * len(known)), min_dim_size_to_factor)

    return jax.tree_util.tree_map_with_path(treat, params)


def _factoring(
    shape: Sequence[int], by_axis: Sequence[FactorDim], min_dim_size_to_factor: float, factored: bool = True
) -> Factoring:
    """By size for rank 2 or less without a batch axis, else by role."""
    if len(shape) <= 2 and FactorDim.BATCH not in by_axis:
        return _largest_axes(shape, min_dim_size_to_factor)
    rows, columns, batch = (
        tuple(i for i, found in enumerate(by_axis) if found is role)
        for role in (FactorDim.ROW, FactorDim.COLUMN, FactorDim.BATCH)
    )
    averaged = tuple(i for i in range(len(shape)) if i not in batch)
    return Factoring(rows, columns, averaged) if factored else Factoring((), (), averaged)


def scale_by_factored_rms(
    treat: Treat, decay_rate: float = 0.8, step_offset: int = 0, epsilon: float = 1e-30
) -> optax.GradientTransformation:
    """Divides gradients by the root of their decayed mean square, kept in factored form.

    `v_row ← β₂·v_row + (1 - β₂)·mean over columns of (g² + ε)`, `v_col` likewise over rows, and
    `u = g · (v_row / mean v_row)^-½ · v_col^-½`; not factored: `u = g · v^-½`. `β₂ = 1 - (t + 1)^-decay_rate`.

    Args:
      treat: parameters -> how each is treated, `factorings` with its other arguments given.
      decay_rate: see above.
      step_offset: subtracted from the step `t`.
      epsilon: see above.

    Source: Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235.
    """

    def init(params: Any) -> FactoredState:
        none = jnp.zeros((1,), jnp.float32)

        def empty(param: Array, how: Factoring) -> tuple[Array, Array, Array]:
            if not how.rows:
                return none, none, jnp.zeros(param.shape, jnp.float32)
            shape = np.asarray(param.shape)
            return jnp.zeros(np.delete(shape, how.columns)), jnp.zeros(np.delete(shape, how.rows)), none

        return FactoredState(jnp.zeros((), jnp.int32), *_unzip(3, params, jax.tree.map(empty, params, treat(params))))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, FactoredState]:
        decay = 1.0 - jnp.asarray(state.count - step_offset + 1, jnp.float32) ** -decay_rate

        def one(gradient: Array, v_row: Array, v_col: Array, v: Array, how: Factoring) -> tuple[Array, ...]:
            square = jnp.square(gradient.astype(jnp.float32)) + epsilon
            if not how.rows:
                v = decay * v + (1.0 - decay) * square
                return gradient * v**-0.5, v_row, v_col, v
            v_row = decay * v_row + (1.0 - decay) * jnp.mean(square, how.columns)
            v_col = decay * v_col + (1.0 - decay) * jnp.mean(square, how.rows)
            by_row, by_col = jnp.expand_dims(v_row, how.columns), jnp.expand_dims(v_col, how.rows)
            by_row = by_row / jnp.mean(by_row, how.rows, keepdims=True)
            return gradient * by_row**-0.5 * by_col**-0.5, v_row, v_col, v

        results = jax.tree.map(one, updates, state.v_row, state.v_col, state.v, treat(updates))
        updates, *statistics = _unzip(4, updates, results)
        return updates, FactoredState(optax.safe_increment(state.count), *statistics)

    return optax.GradientTransformation(init, update)


def clip_by_rms(treat: Treat, threshold: float) -> optax.GradientTransformation:
    """Divides each update by `max(1, rms / threshold)`, for each layer of a stack by itself."""

    def clip(update: Array, how: Factoring) -> Array:
        return update / jnp.maximum(1.0, _rms(update, how) / threshold)

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates, treat(updates)))


def scale_by_param_rms(
    treat: Treat, minimum: float, maximum: float | None = None, which: HParamMap | bool = True
) -> optax.GradientTransformation:
    """Multiplies each update by `max(minimum, rms of the parameter)`, for each layer of a stack by itself.

    Args:
      treat: as for `scale_by_factored_rms`.
      minimum: least scale.
      maximum: largest scale; no limit when None.
      which: the parameters whose updates are scaled.
    """

    def scale(update: Array, param: Array, how: Factoring, scaled: bool) -> Array:
        return update * jnp.clip(_rms(param, how), minimum, maximum) if scaled else update

    def chosen(params: Any) -> Any:
        return which(params) if isinstance(which, HParamMap) else jax.tree.map(lambda _: which, params)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, params, treat(params), chosen(params)))


def skip_not_a_number(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer`, where entries of parameters and statistics that would become NaN keep their old value."""

    def kept(new: Any, old: Any) -> Any:
        return jnp.where(jnp.isnan(new), old, new) if jnp.issubdtype(jnp.result_type(new), jnp.floating) else new

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, new_state = optimizer.update(updates, state, params)
        updates = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.zeros_like(x), x), updates)
        return updates, jax.tree.map(kept, new_state, state)

    return optax.GradientTransformation(optimizer.init, update)


def _rms(x: Array, how: Factoring) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), how.averaged, keepdims=True))


def _unzip(count: int, like: Any, tree: Any) -> list[Any]:
    """A tree of `count`-tuples as `count` trees, each like `like`."""
    return [jax.tree.map(lambda _, results, i=i: results[i], like, tree) for i in range(count)]
