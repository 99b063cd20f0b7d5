"""Kernels as early flaxformer stored them become those of today's modules."""

import jax
import numpy as np
import pytest

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.t5x import CheckpointError, dequantize, join_heads
from tests.golden.build import load
from tests.weights import trees

RECORDED = load("legacy_aqt_param_trees").description["trees"]
CLASSES = sorted({name.split("/")[0] for name in RECORDED})


def tree_of(recorded):
    """Random numbers in the recorded shapes."""
    tree = {}
    for path, (shape, dtype) in recorded["param_tree"].items():
        node = tree
        *scopes, leaf = path.split("/")
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = (100 * trees.numbers(*shape)).astype(dtype) + (leaf == "qscale")
    return tree


@pytest.mark.parametrize("name", CLASSES)
def test_int8_kernels_become_the_recorded_float_kernels(name):
    quantised, floats = (
        tree_of(RECORDED[tree]) for tree in sorted((t for t in RECORDED if t.startswith(f"{name}/")), key=is_float)
    )
    got = dequantize(quantised)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, floats)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    trees.assert_equal(jax.tree.map(np.asarray, dequantize(jax.tree.map(StoredArray.of, quantised))), got)


def is_float(name):
    return name.endswith("float_params")


def test_a_part_of_a_kernel_is_divided_by_its_part_of_the_scale():
    kernel, scale = np.arange(-6, 6, dtype=np.int8).reshape(3, 4), trees.numbers(1, 4)
    stored = {"wo": {"qkernel": StoredArray.of(kernel), "qscale": StoredArray.of(scale)}}
    part = (slice(1, 3), slice(2, 4))
    np.testing.assert_array_equal(dequantize(stored)["wo"]["kernel"].read(part), (kernel / scale)[part])


def test_heads_are_joined_in_attention_kernels_alone():
    query, out, other = trees.numbers(6, 2, 4), trees.numbers(2, 4, 6), trees.numbers(3, 2, 2)
    params = {"attention": {"query": {"kernel": query}, "out": {"kernel": out}}, "kv_fused": {"kernel": other}}
    got = join_heads(params)
    np.testing.assert_array_equal(got["attention"]["query"]["kernel"], query.reshape(6, 8))
    np.testing.assert_array_equal(got["attention"]["out"]["kernel"], out.reshape(8, 6))
    np.testing.assert_array_equal(got["kv_fused"]["kernel"], other)
    trees.assert_equal(jax.tree.map(np.asarray, join_heads(jax.tree.map(StoredArray.of, params))), got)


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        (dequantize, {"wo": {"kernel": np.zeros(2)}}, "expected a kernel stored as `qkernel` and `qscale`"),
        (dequantize, {"wo": {"qkernel": np.zeros(2)}}, "wo/qkernel has no qscale of as many axes"),
        (join_heads, {"query": {"kernel": np.zeros((2, 2))}}, "expected an attention kernel of three axes"),
        (join_heads, {"encoder": {"encoder": {}}}, "layers in encoder are stacked.*Use unstack_layers first"),
    ],
)
def test_what_is_not_stored_so_is_refused(change, params, message):
    with pytest.raises(CheckpointError, match=message):
        change(params)
