import logging

import flax.linen as nn
import jax
import pytest

from flaxformer.architectures.common.param_remapping import METADATA_KEY, VERSION_KEY
from flaxformer.components.layer_norm import T5LayerNorm
from flaxformer.t5x import checkpointing_util
from flaxformer.transformer_common import LayerSequence

META = {METADATA_KEY: {VERSION_KEY: 0}}
MODULE = LayerSequence(1, T5LayerNorm)
STATE = {
    "target": {"layers_0": {"scale": 1}},
    "state": {"step": 7, "param_states": {"layers_0": {"scale": {"m": 2, "v": 3}}}},
}


def test_parameters_and_their_states_are_saved_alike():
    infos = jax.tree.map(lambda x: f"info {x}", STATE)
    saved, saved_infos = checkpointing_util.make_to_save_format_fn(MODULE)(STATE, infos)
    assert saved["target"] == {"layers_0": {"scale": 1, **META}, **META}
    assert saved["state"] == {"step": 7, "param_states": {"layers_0": {"scale": {"m": 2, "v": 3}, **META}, **META}}
    no_version = {METADATA_KEY: {VERSION_KEY: None}}
    assert saved_infos["target"] == {"layers_0": {"scale": "info 1", **no_version}, **no_version}
    assert saved_infos["state"]["param_states"]["layers_0"]["scale"] == {"m": "info 2", "v": "info 3"}


@pytest.mark.parametrize("is_resuming", [False, True])
def test_restoring_undoes_saving(is_resuming):
    saved, _ = checkpointing_util.make_to_save_format_fn(MODULE)(STATE, STATE)
    restore = checkpointing_util.make_from_save_format_fn(MODULE)
    assert restore(saved, {}, is_resuming=is_resuming) == STATE


def test_a_state_for_inference_has_no_param_states():
    state = {"target": STATE["target"], "state": {"step": 7}}
    saved, _ = checkpointing_util.make_to_save_format_fn(MODULE)(state, state)
    assert saved["state"] == {"step": 7}
    assert checkpointing_util.make_from_save_format_fn(MODULE)(saved, {}) == state


def test_names_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        checkpointing_util.make_to_save_format_fn(MODULE)(STATE, STATE)
    assert "names before remapping: ['state/param_states/layers_0/scale/m'" in caplog.text
    assert f"target/{METADATA_KEY}/{VERSION_KEY}" in caplog.text


@pytest.mark.parametrize(
    "make", [checkpointing_util.make_to_save_format_fn, checkpointing_util.make_from_save_format_fn]
)
def test_modules_without_a_save_format_are_refused(make):
    with pytest.raises(ValueError, match="the module is a Dense; expected a ParameterRemappable"):
        make(nn.Dense(3))
