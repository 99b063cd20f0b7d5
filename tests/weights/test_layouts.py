"""Layouts change into each other and back without touching a number."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from flaxformer.architectures import repeat
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.t5x import (
    CheckpointError,
    share_relative_bias,
    split_relative_bias,
    stack_layers,
    unstack_layers,
)
from tests.golden.build import load
from tests.weights import trees

BIAS = trees.numbers(2, 8)


def model(**options):
    return {
        "token_embedder": {"embedding": trees.numbers(9, 4)},
        "encoder": {**trees.layers(**options), "encoder_norm": {"scale": trees.numbers(4)}},
        "decoder": {**trees.layers(count=2, seed=5, **options), "decoder_norm": {"scale": trees.numbers(4)}},
    }


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("lazy", [False, True])
def test_stacking_is_that_of_the_repeat_module_and_unstacking_its_inverse(axis, lazy):
    params = model(bias=lambda i: BIAS + i)
    given = jax.tree.map(StoredArray.of, params) if lazy else params
    stacked = stack_layers(given, axis)
    assert all(isinstance(leaf, StoredArray) == lazy for leaf in jax.tree.leaves(stacked))
    trees.assert_equal(stacked, jax.tree.map(np.asarray, repeat.stack_layer_params(params, axis)))
    trees.assert_equal(unstack_layers(stacked, axis), params)


def test_parts_of_stacked_arrays_are_read_alone():
    whole = stack_layers(model())["encoder"]["encoder"]["mlp"]["kernel"]
    lazy = stack_layers(jax.tree.map(StoredArray.of, model()))["encoder"]["encoder"]["mlp"]["kernel"]
    assert lazy.shape == (4, 3, 5)
    for part in [(slice(0, 2), slice(1, 3), slice(4, 5)), (slice(0, 4), slice(2, 2), slice(0, 5))]:
        np.testing.assert_array_equal(lazy.read(part), whole[part])


def test_equal_relative_biases_are_shared_and_a_shared_one_is_split():
    shared, split = model(shared=BIAS), model(bias=lambda i: BIAS)
    trees.assert_equal(share_relative_bias(split), shared)
    trees.assert_equal(split_relative_bias(shared), split)


def test_unequal_relative_biases_are_not_shared():
    with pytest.raises(CheckpointError, match="encoder/layers_1/relpos_bias differs from that of layers_0"):
        share_relative_bias(model(bias=lambda i: BIAS + (i == 1)))
    lacking = model(bias=lambda i: BIAS)
    del lacking["encoder"]["layers_2"]["relpos_bias"]
    with pytest.raises(CheckpointError, match="encoder/layers_2/relpos_bias differs"):
        share_relative_bias(lacking)


def test_a_shared_bias_is_split_before_layers_are_stacked():
    with pytest.raises(CheckpointError, match="encoder has one relative bias for all layers.*split_relative_bias"):
        stack_layers(model(shared=BIAS))
    stacked = stack_layers(split_relative_bias(model(shared=BIAS)))
    assert stacked["encoder"]["encoder"]["relpos_bias"]["rel_embedding"].shape == (2, 3, 8)
    trees.assert_equal(share_relative_bias(unstack_layers(stacked)), model(shared=BIAS))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (stack_layers, "layers_0, layers_1"),
        (unstack_layers, "encoder/encoder"),
        (share_relative_bias, "layers_0/relpos_bias"),
        (split_relative_bias, "relpos_bias"),
    ],
)
def test_what_is_in_the_wanted_layout_already_is_refused(change, wanted):
    with pytest.raises(CheckpointError, match=rf"have token_embedder; expected a stack.*with {wanted}"):
        change({"token_embedder": {}})


def test_layers_that_differ_or_are_missing_are_refused():
    differing, missing = model(), model()
    differing["encoder"]["layers_2"]["norm"]["scale"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="encoder/layers_2 has other parameters than layers_0"):
        stack_layers(differing)
    del missing["encoder"]["layers_1"]
    with pytest.raises(CheckpointError, match=r"numbered \[0, 2\]; expected 0, 1, 2"):
        stack_layers(missing)


def test_a_wrong_axis_is_refused():
    with pytest.raises(CheckpointError, match=r"encoder/encoder have the sizes \[.*\] on axis 2; expected one number"):
        unstack_layers(stack_layers(model(bias=lambda i: BIAS), axis=0), axis=2)


@pytest.mark.parametrize(("axis", "scanned"), [(1, "encdec_scan"), (0, "encdec_scan_axis0")])
def test_recorded_trees_of_both_layouts_are_each_others(axis, scanned):
    listed, stacked = (tree_of(load(name)) for name in ("encdec_per_layer_relpos", scanned))
    got = unstack_layers(stacked, axis)
    for name in ("encoder", "decoder"):
        for part in ("layers_0", f"{name}_norm"):
            assert jax.tree.map(np.shape, got[name][part]) == jax.tree.map(np.shape, listed[name][part])
    assert jax.tree.map(np.shape, stack_layers(got, axis)) == jax.tree.map(np.shape, stacked)


def tree_of(case):
    shapes = {path: np.zeros(shape) for path, (shape, _) in case.description["param_tree"].items()}
    return traverse_util.unflatten_dict(shapes, sep="/")
