"""Loops on CPU turn their weights once, and write what they would have written."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxformer.components.int8_matrix import Int8Matrix
from flaxformer.decoding import (
    BeamSearch,
    Greedy,
    PromptLookup,
    generate,
    model_session,
    prepare_weights,
    score,
    stream,
    weight_order,
)
from flaxformer.decoding.weight_order import AS_STORED, OUTSIDE, PREPARED, Order, Stack, order_weights, reading
from tests.decoding.test_model_session import EOS, inputs_of, model_of
from tests.decoding.test_model_session import PROMPTS as RAGGED

STEPS = weight_order.FEWEST_STEPS
DRAFT = PromptLookup(2)
PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.ones((2, 3, 4))}}
STACK = Stack(("b",), 1)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_matrices_are_turned_and_read_as_they_were():
    turned, order = order_weights(PARAMS, rows=3, steps=STEPS)
    assert order == Order("turned")
    assert shapes(turned) == {"a": {"kernel": (4, 3), "bias": (4,)}, "b": {"kernel": (2, 3, 4)}}
    with reading(turned, order) as params:
        assert shapes(params) == shapes(PARAMS)


@pytest.mark.parametrize(
    ("rows", "kernel", "stacked"), [(2, (3, 4), (3, 2, 4)), (3, (4, 3), (3, 4, 2)), (65, (3, 4), (3, 2, 4))]
)
def test_scanned_layers_come_first_and_are_left_so(rows, kernel, stacked):
    moved, order = order_weights(PARAMS, rows, STEPS, STACK)
    assert order == Order("turned" if rows == 3 else "as stored", STACK)
    assert shapes(moved) == {"a": {"kernel": kernel, "bias": (4,)}, "b": {"kernel": stacked}}
    with reading(moved, order) as params:
        assert shapes(params) == {**shapes(PARAMS), "b": {"kernel": stacked}}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 1},
        {"rows": 2},
        {"rows": weight_order.MOST_ROWS + 1},
        {"steps": STEPS - 1, "stack": STACK},
        {"params": {"kernel": jnp.ones((3, 4), jnp.bfloat16)}},
        {"params": {"kernel": jax.ShapeDtypeStruct((2**16, 2**14), jnp.float32)}},
    ],
    ids=["one row", "two rows", "many rows", "few steps", "bfloat16", "too large"],
)
def test_weights_stay_where_another_order_does_not_pay(change):
    params, order = order_weights(**(options := {"params": PARAMS, "rows": 3, "steps": STEPS} | change))
    assert params is options["params"] and order == AS_STORED


def test_other_platforms_keep_their_weights(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert order_weights(PARAMS, 3, STEPS, STACK) == (PARAMS, OUTSIDE)


def test_what_is_prepared_is_read_and_not_turned_again():
    prepared = {"a/kernel": jnp.zeros((4, 3))}
    turned, order = order_weights(PARAMS, rows=3, steps=1, prepared=prepared)
    assert order == Order("turned")
    assert turned["a"]["kernel"] is prepared["a/kernel"] and turned["a"]["bias"] is PARAMS["a"]["bias"]
    assert order_weights(PARAMS, rows=2, steps=STEPS, prepared=prepared) == (PARAMS, AS_STORED)


@pytest.mark.parametrize(("name", "first"), [("encdec_v11", 0), ("declm_scan", 1)])
def test_prepared_are_the_matrices_of_the_decoder(name, first):
    model, variables = model_of(name)
    ready = prepare_weights(model, variables)
    assert ready["params"] is variables["params"]
    kernels = flatten_dict({"decoder": variables["params"]["decoder"]}, sep="/")
    kernels = {path: leaf for path, leaf in kernels.items() if path.endswith("kernel")}
    expected = {path: jnp.moveaxis(leaf, first, 0) if leaf.ndim == 3 else leaf for path, leaf in kernels.items()}
    chex.assert_trees_all_equal(ready[PREPARED], {path: leaf.mT for path, leaf in expected.items()})


def test_nothing_is_prepared_on_other_platforms(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert prepare_weights(*model_of("declm_tied")) == model_of("declm_tied")[1]


@pytest.mark.parametrize("name", ["encdec_v11", "declm_scan"])
def test_prepared_weights_write_the_same_and_are_not_copied(name):
    model, variables = model_of(name)
    options: dict[str, Any] = {"strategy": BeamSearch(num_beams=2), "eos_id": EOS, "max_new_tokens": STEPS}

    def write(variables):
        return generate(model, variables, inputs_of(name, RAGGED), **options)

    ready = prepare_weights(model, variables)
    chex.assert_trees_all_equal(write(ready), write(variables))
    counts = [str(jax.make_jaxpr(write)(given)).count("transpose") for given in (ready, variables)]
    assert counts[1] - counts[0] >= len(ready[PREPARED])  # scanned layers are brought to the front too


@pytest.mark.parametrize("name", ["encdec_v11", pytest.param("declm_scan", marks=pytest.mark.slow)])
def test_int8_weights_write_nearly_what_float32_scores(name):
    model, variables = model_of(name)
    ready = prepare_weights(model, variables, jnp.int8)
    assert all(isinstance(matrix, Int8Matrix) for matrix in ready[PREPARED].values())
    inputs = inputs_of(name, RAGGED)
    options: dict[str, Any] = {"eos_id": EOS, "max_new_tokens": STEPS}
    found = generate(model, ready, inputs, strategy=BeamSearch(num_beams=2, alpha=0.0), **options)
    expected = score(model, variables, inputs, found.tokens, lengths=found.lengths).sequences
    assert not jnp.array_equal(found.scores, expected)
    np.testing.assert_allclose(found.scores, expected, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "int4", jnp.uint8])
def test_weights_are_prepared_in_float32_or_int8(dtype):
    with pytest.raises(ValueError, match="expected float32 or int8"):
        prepare_weights(*model_of("declm_tied"), dtype)


def test_short_floats_are_prepared_as_int8_alone():
    model, variables = model_of("declm_tied")
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    with pytest.raises(ValueError, match="no matrix to prepare as float32, and arrays of bfloat16; expected"):
        prepare_weights(model, short)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), short)
    found, expected = (prepare_weights(model, given, jnp.int8)[PREPARED] for given in (short, exact))
    chex.assert_trees_all_equal(found, expected)


def test_variables_without_parameters_are_refused():
    with pytest.raises(ValueError, match="expected 'params' among them"):
        prepare_weights(model_of("declm_tied")[0], {})


def test_streams_read_prepared_weights_in_every_call(monkeypatch):
    said, tell = [], weight_order.read_in_loop
    monkeypatch.setattr(weight_order, "read_in_loop", lambda order: said.append(order) or tell(order))
    model, variables = model_of("encdec_v11")
    inputs = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), inputs_of("encdec_v11", RAGGED))
    options: dict[str, Any] = {"strategy": Greedy(), "eos_id": EOS, "max_new_tokens": 6, "every": 2}
    written = [list(stream(model, x, inputs, **options)) for x in (prepare_weights(model, variables), variables)]
    assert "turned" in said  # too few steps for a copy that each call would make anew
    chex.assert_trees_all_equal(*written)


@pytest.mark.parametrize(
    ("name", "rows", "strategy", "draft"),
    [
        ("declm_tied", 2, Greedy(), DRAFT),
        ("encdec_v11", 2, Greedy(), None),
        ("declm_scan", 2, BeamSearch(num_beams=2), None),
        pytest.param("declm_scan", 1, Greedy(), None, marks=pytest.mark.slow),
        pytest.param("encdec_v11", 2, BeamSearch(num_beams=2), None, marks=pytest.mark.slow),
        pytest.param("encdec_scan", 2, Greedy(), DRAFT, marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_weights_as_stored(name, rows, strategy, draft, monkeypatch):
    options: dict[str, Any] = {"strategy": strategy, "draft": draft, "eos_id": EOS, "max_new_tokens": STEPS}
    inputs: Any = jax.tree.map(lambda x: x[:rows], inputs_of(name, RAGGED))
    found = generate(*model_of(name), inputs, **options)
    monkeypatch.setattr(model_session, "order_weights", lambda params, *_: (params, OUTSIDE))
    expected = generate(*model_of(name), inputs, **options, checks=True)  # another program
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "beams", "order"),
    [
        ("encdec_v11", 2, "turned"),
        ("encdec_scan", 2, "turned"),
        ("declm_scan", 1, "as stored"),
        ("declm_tied", 1, "as stored"),
    ],
)
def test_loops_of_models_read_weights_in_this_order(name, beams, order, monkeypatch):
    said = {"read_in_loop": [], "layers_first": []}
    for word, heard in said.items():
        tell = getattr(weight_order, word)
        monkeypatch.setattr(weight_order, word, lambda so, tell=tell, heard=heard: heard.append(so) or tell(so))
    options: dict[str, Any] = {"strategy": BeamSearch(num_beams=beams), "eos_id": EOS, "max_new_tokens": STEPS + 1}
    asked: Any = (*model_of(name), inputs_of(name, RAGGED))
    jax.eval_shape(lambda: generate(*asked, **options))
    assert order in said["read_in_loop"] and any(said["layers_first"]) == ("scan" in name)
