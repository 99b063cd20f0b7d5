"""The recorded decoding cases and the toy language model they were recorded with."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

_FOLDER = Path(__file__).parent.parent / "golden" / "runtime"


def case_names(prefix):
    return sorted(path.stem for path in _FOLDER.glob(prefix + "*.json"))


def load_case(name, with_params=False):
    """The case's description, inputs and outputs, and on request its parameters."""
    description = json.loads((_FOLDER / f"{name}.json").read_text())
    with np.load(_FOLDER / f"{name}.npz") as arrays:
        arrays = {key: arrays[key] for key in arrays}
    kinds = ("inputs/", "outputs/", "params/") if with_params else ("inputs/", "outputs/")
    picked = [{k.removeprefix(kind): v for k, v in arrays.items() if k.startswith(kind)} for kind in kinds]
    return description, *picked


def call_arguments(description, inputs):
    """The recorded keyword arguments, with arrays and keys in place."""
    call = dict(description["call"])
    for key, value in call.items():
        if isinstance(value, str) and value.startswith("inputs/"):
            call[key] = jnp.asarray(inputs[value.removeprefix("inputs/")])
    if "decode_rng" in call:
        call["decode_rng"] = jax.random.PRNGKey(call["decode_rng"])
    return call


class ToyLanguageModel:
    """Logits depend on the current token and, through the cache, faintly on all earlier ones. Counts its calls."""

    def __init__(self, inputs, num_decodes, cache_offset=0):
        self.transitions = jnp.repeat(jnp.asarray(inputs["transition_logits"]), num_decodes, axis=0)
        self.coefficient = jnp.asarray(inputs["history_coef"])
        self.offset = cache_offset
        self.calls = 0

    def cache(self, batch, index=None):
        shape = (1, batch, 1) if self.offset else (batch, 1)
        index = jnp.zeros((), jnp.int32) if index is None else jnp.asarray(index)
        return {"layer": {"cached_key": jnp.zeros(shape), "cache_index": index}}

    def __call__(self, state):
        jax.debug.callback(self._count)
        old = state.cache["layer"]
        token = state.cur_token[:, 0]
        history = 0.5 * old["cached_key"].reshape(-1) + token
        logits = self.transitions[jnp.arange(len(token)), token] + 0.1 * history[:, None] * self.coefficient
        new = {"cached_key": history.reshape(old["cached_key"].shape), "cache_index": old["cache_index"] + 1}
        return logits, {"layer": new}

    def _count(self):
        self.calls += 1
