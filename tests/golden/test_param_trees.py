"""Parameter trees: names, shapes, dtypes and axes of every published T5, of saved layouts and of retired kernels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from flaxformer.retired import RetiredError
from tests.golden import compare
from tests.golden.build import Case, build, load, names, resolve
from tests.golden.run import init_rngs

SIZES = [name for name in names("parameter trees") if name.startswith("paramtree_")]
RETIRED = load("legacy_aqt_param_trees").description["trees"]


@pytest.mark.parametrize("name", SIZES)
def test_published_size_has_its_parameter_tree(name):
    description = load(name).description
    assert dataclasses.asdict(resolve(description["config_constant"])) == description["constructor"]
    variables = _abstract_variables(resolve(description["target"])(**description["constructor"]))
    got = compare.shapes(variables["params"])
    assert got == description["param_tree"]
    assert compare.flatten_axes(variables["params_axes"]) == description["params_axes"]
    assert sum(math.prod(shape) for shape, _ in got.values()) == description["total_parameters"]


def test_saved_layout_is_the_parameters_and_metadata():
    case = load("param_remapping")
    module = resolve(case.description["target"])(**build(case.description["constructor"]))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _abstract_variables(module)["params"])
    assert _shape_tree(params) == case.description["params_tree_shapes"]
    saved = module.apply({}, params, method=module.to_save_format)
    assert _shape_tree(saved) == case.description["save_format_tree_shapes"]
    restored = module.apply({}, saved, method=module.from_save_format)
    assert _shape_tree(restored) == case.description["params_tree_shapes"]
    assert case.description["from_save_format_equals_params"]


@pytest.mark.parametrize("class_name", sorted({tree.split("/")[0] for tree in RETIRED}))
def test_kernels_stored_as_float_under_retired_quantisation_still_load(class_name):
    """A query kernel, stored there by head, is the same numbers in the same order as the matrix stored here."""
    module, inputs = _plain_twin(class_name)
    variables = jax.eval_shape(lambda rngs: module.init(rngs, *inputs, enable_dropout=False), init_rngs())
    got = compare.shapes(variables["params"])
    recorded = RETIRED[f"{class_name}/float_params"]["param_tree"]
    by_head = [path for path, (shape, _) in recorded.items() if path == "query/kernel" and len(shape) == 3]
    for path in by_head:
        shape, dtype = recorded[path]
        recorded = recorded | {path: [[shape[0], math.prod(shape[1:])], dtype]}
    assert got == recorded


@pytest.mark.parametrize("value", [{"use_aqt": True}, {"possibly_use_quantized_vars": True}])
@pytest.mark.parametrize("class_name", sorted({tree.split("/")[0] for tree in RETIRED}))
def test_kernels_stored_as_int8_are_refused(class_name, value):
    module, inputs = _plain_twin(class_name)
    with pytest.raises(RetiredError, match="retired"):
        jax.eval_shape(lambda rngs: module.clone(**value).init(rngs, *inputs, enable_dropout=False), init_rngs())


def _plain_twin(class_name):
    """The module whose quantised parameters were recorded, without quantisation, and what to call it with."""
    x = jnp.ones((2, 3, 8))
    if class_name == "ParallelFusedDecoderLayer":
        case: Case = load("parallel_fused")
        constructor = {k: v for k, v in case.description["constructor"].items() if "relative" not in k}
        return resolve(case.description["target"])(**build(constructor)), (x, None)
    if class_name == "MlpBlock":
        module = resolve("flaxformer.components.dense.MlpBlock")
        return module(use_bias=True, intermediate_dim=12, activations=("gelu", "linear")), (x,)
    module = resolve("flaxformer.components.attention.dense_attention.MultiQueryDotProductAttention")
    return module(num_heads=2, head_dim=4, use_bias=True), (x, x)


def _abstract_variables(module):
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(
        lambda rngs: module.init(rngs, tokens, tokens, tokens, enable_dropout=False),
        init_rngs(),
    )


def _shape_tree(tree):
    """Arrays become their shapes; the numbers in metadata stay."""
    if isinstance(tree, dict):
        return {key: _shape_tree(value) for key, value in tree.items()}
    return tree if isinstance(tree, int) else list(tree.shape)
