"""Loops on CPU turn their weights once, and write what they would have written."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import BeamSearch, Greedy, PromptLookup, generate, weight_order
from flaxformer.decoding.weight_order import reading, turn_weights
from tests.decoding.test_model_session import EOS, inputs_of, model_of
from tests.decoding.test_model_session import PROMPTS as RAGGED

STEPS = weight_order.FEWEST_STEPS
DRAFT = PromptLookup(2)
PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.ones((2, 3, 4))}}


def test_matrices_are_turned_and_read_as_they_were():
    turned = turn_weights(PARAMS, rows=2, steps=STEPS)
    assert jax.tree.map(jnp.shape, turned) == {"a": {"kernel": (4, 3), "bias": (4,)}, "b": {"kernel": (2, 3, 4)}}
    with reading(turned, True) as params:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 1},
        {"rows": weight_order.MOST_ROWS + 1},
        {"steps": STEPS - 1},
        {"params": {"kernel": jnp.ones((3, 4), jnp.bfloat16)}},
        {"params": {"kernel": jax.ShapeDtypeStruct((2**16, 2**14), jnp.float32)}},
    ],
    ids=["one row", "many rows", "few steps", "bfloat16", "too large"],
)
def test_weights_stay_where_turning_does_not_pay(change):
    assert turn_weights(**({"params": PARAMS, "rows": 2, "steps": STEPS} | change)) is None


def test_other_platforms_keep_their_weights(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert turn_weights(PARAMS, rows=2, steps=STEPS) is None


@pytest.mark.parametrize(
    ("name", "strategy", "draft"),
    [
        ("declm_tied", Greedy(), DRAFT),
        pytest.param("encdec_v11", BeamSearch(num_beams=2), None, marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_weights_as_stored(name, strategy, draft, monkeypatch):
    options: dict[str, Any] = {"strategy": strategy, "draft": draft, "eos_id": EOS, "max_new_tokens": STEPS}
    inputs: Any = inputs_of(name, RAGGED)
    found = generate(*model_of(name), inputs, **options)
    monkeypatch.setattr(weight_order, "MOST_BYTES", 0)
    expected = generate(*model_of(name), inputs, **options, checks=True)  # another program
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["encdec_v11", "declm_tied", "encdec_scan", "declm_scan"])
def test_scanned_layers_keep_their_weights(name, monkeypatch):
    chosen = []
    monkeypatch.setattr(weight_order, "weights_first", lambda turned: chosen.append(turned) or contextlib.nullcontext())
    options: dict[str, Any] = {"strategy": Greedy(), "eos_id": EOS, "max_new_tokens": STEPS + 1}
    asked: Any = (*model_of(name), inputs_of(name, RAGGED))
    jax.eval_shape(lambda: generate(*asked, **options))
    assert any(chosen) == ("scan" not in name)
