"""Hooks for T5X's checkpointer that save and restore parameters in their versioned layout.

See `flaxformer.architectures.common.param_remapping` for the layout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxformer.architectures.common import param_remapping

_LOGGER = logging.getLogger(__name__)

SaveFn = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
RestoreFn = Callable[..., dict[str, Any]]


def make_to_save_format_fn(module: nn.Module) -> SaveFn:
    """Makes the hook that T5X calls before it saves.

    Args:
      module: the model.

    Returns:
      `(state_dict, parameter_infos) -> (state_dict, parameter_infos)`, both in the save format. Versions have no
      parameter info: it is None.

    Raises:
      ValueError: when the module has no save format.
    """
    _check_remappable(module)

    def to_save_format(state_dict: Mapping[str, Any], parameter_infos: Mapping[str, Any]) -> tuple[dict, dict]:
        saved = _remapped(module, state_dict, module.to_save_format)
        infos = flatten_dict(_remapped(module, parameter_infos, module.to_save_format), keep_empty_nodes=True)
        infos = {path: None if path[-1] == param_remapping.VERSION_KEY else info for path, info in infos.items()}
        return saved, unflatten_dict(infos)

    return to_save_format


def make_from_save_format_fn(module: nn.Module) -> RestoreFn:
    """Makes the hook that T5X calls after it has read a checkpoint.

    Args:
      module: the model.

    Returns:
      `(state_dict, target_state_dict, *, is_resuming=False) -> state_dict` in the layout of the model. Only the first
      argument is used.

    Raises:
      ValueError: when the module has no save format.
    """
    _check_remappable(module)

    def from_save_format(
        state_dict: Mapping[str, Any], target_state_dict: Mapping[str, Any], *, is_resuming: bool = False
    ) -> dict[str, Any]:
        del target_state_dict, is_resuming
        return _remapped(module, state_dict, module.from_save_format)

    return from_save_format


def _check_remappable(module: nn.Module) -> None:
    if not isinstance(module, param_remapping.ParameterRemappable):
        raise ValueError(
            f"the module is a {type(module).__name__}; expected a ParameterRemappable. "
            "Derive it from flaxformer.architectures.common.param_remapping.ParameterRemappable."
        )


def _remapped(module: nn.Module, state: Mapping[str, Any], method: Callable[..., Any]) -> dict[str, Any]:
    """`state` with the subtrees `target` and `state/param_states` passed through `method`."""
    state = dict(state)
    _log_names("before", state)
    state["target"] = module.apply({}, state["target"], method=method)
    if "param_states" in state.get("state", {}):
        states = module.apply({}, state["state"]["param_states"], method=method)
        state["state"] = {**state["state"], "param_states": states}
    _log_names("after", state)
    return state


def _log_names(when: str, state: Mapping[str, Any]) -> None:
    if _LOGGER.isEnabledFor(logging.INFO):
        _LOGGER.info("names %s remapping: %s", when, sorted(flatten_dict(state, sep="/")))
