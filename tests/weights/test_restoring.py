"""Parameters are restored only into the model that they fit, and all that does not fit is said at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxformer import configs
from flaxformer.weights.restoring import abstract_params
from flaxformer.weights.t5x import (
    CheckpointError,
    restore_params,
    save_t5x_checkpoint,
    share_relative_bias,
    split_relative_bias,
    stack_layers,
)
from tests.weights import trees, writer


class Tree(nn.Module):
    """A model whose parameters are a given tree of shapes."""

    shapes: dict

    @nn.compact
    def __call__(self, inputs):
        for name, shape in self.shapes.items():
            if isinstance(shape, tuple):
                self.param(name, nn.initializers.zeros, shape)
            else:
                Tree(dict(shape), name=name)(inputs)
        return inputs


def model_of(params):
    return Tree(jax.tree.map(np.shape, params))


PARAMS = trees.state()["target"]
LISTED = {"encoder": trees.layers(shared=trees.numbers(2, 8))}


@pytest.fixture
def path(tmp_path):
    return writer.native(tmp_path / "checkpoint_7", trees.state())


def test_what_fits_is_restored_as_float32_arrays(tmp_path):
    save_t5x_checkpoint(tmp_path, {"target": PARAMS}, dtype="bfloat16")
    got = restore_params(model_of(PARAMS), tmp_path)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), PARAMS)
    trees.assert_equal(jax.tree.map(np.asarray, got), expected)
    kept = restore_params(model_of(PARAMS), tmp_path, dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}


def test_everything_that_does_not_fit_is_listed(path):
    wanted = {"encoder": {"layers_0": {"query": {"kernel": np.zeros((6, 5))}}, "other": {"scale": np.zeros(4)}}}
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        restore_params(model_of(wanted), path)
    lines = str(caught.value).split("\n  ")[1:]
    assert lines == [
        "missing encoder/other/scale [4]",
        "unexpected encoder/encoder_norm/scale [4]",
        "encoder/layers_0/query/kernel is [6, 4], expected [6, 5]",
    ]


def test_nothing_is_read_before_everything_fits(path):
    for chunk in path.glob("*/0*"):
        chunk.unlink()
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_params(model_of({"w": np.zeros(2)}), path)
    with pytest.raises(CheckpointError, match="chunk .* it is missing"):
        restore_params(model_of(PARAMS), path)


def test_entries_are_renamed_dropped_and_filled_in(path):
    wanted = {"old": {"scale": np.zeros(4)}, "new": {"w": np.zeros(3)}}
    rules = [("target/old/(.*)", r"target/encoder/encoder_norm/\1"), ("target/new/.*", None)]
    fresh = {"new": {"w": jnp.ones(3)}}
    got = restore_params(model_of(wanted), path, assignment_map=rules, fallback=fresh, strict=False)
    expected = {"old": PARAMS["encoder"]["encoder_norm"], "new": {"w": np.ones(3, np.float32)}}
    trees.assert_equal(jax.tree.map(np.asarray, got), expected)
    with pytest.raises(CheckpointError, match="missing new/w"):
        restore_params(model_of(wanted), path, assignment_map=rules, strict=False)


@pytest.mark.parametrize(
    ("stored", "change", "hint"),
    [
        (LISTED, [split_relative_bias, stack_layers], r"pass layouts=\[split_relative_bias, stack_layers\]"),
        (LISTED, [split_relative_bias], r"pass layouts=\[split_relative_bias\]"),
        (split_relative_bias(LISTED), [share_relative_bias], r"pass layouts=\[share_relative_bias\]"),
    ],
)
def test_another_layout_is_recognised_and_converted(tmp_path, stored, change, hint):
    save_t5x_checkpoint(tmp_path, {"target": stored})
    expected = stored
    for function in change:
        expected = function(expected)
    with pytest.raises(CheckpointError, match=hint):
        restore_params(model_of(expected), tmp_path)
    trees.assert_equal(jax.tree.map(np.asarray, restore_params(model_of(expected), tmp_path, layouts=change)), expected)


def test_a_stacked_checkpoint_for_a_list_of_layers_is_recognised(tmp_path):
    save_t5x_checkpoint(tmp_path, {"target": stack_layers(split_relative_bias(LISTED))})
    with pytest.raises(CheckpointError, match=r"pass layouts=\[unstack_layers\]"):
        restore_params(model_of(split_relative_bias(LISTED)), tmp_path)


def test_arrays_are_put_onto_the_shardings_given(path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("model",)))
    every = restore_params(model_of(PARAMS), path, shardings=split)
    assert {leaf.sharding for leaf in jax.tree.leaves(every)} == {split}
    shardings = traverse_util.path_aware_map(lambda keys, _: split if keys[-1] == "kernel" else replicated, PARAMS)
    got = restore_params(model_of(PARAMS), path, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, got) == shardings
    trees.assert_equal(jax.tree.map(np.asarray, got), PARAMS)
    with pytest.raises(CheckpointError, match=r"shardings differs from the parameters in \['encoder/encoder_norm/"):
        restore_params(model_of(PARAMS), path, shardings={"encoder": {"layers_0": shardings["encoder"]["layers_0"]}})


def test_a_model_that_takes_no_tokens_needs_a_batch():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, left, right):
            return left + nn.Dense(2)(right)

    with pytest.raises(ValueError, match="Sum is called with left, right; expected some of .*Pass batch="):
        abstract_params(Sum())
    batch = {"left": np.zeros((1, 2)), "right": np.zeros((1, 3))}
    assert abstract_params(Sum(), batch)["Dense_0"]["kernel"].shape == (3, 2)


def test_a_t5_restores_its_save_format(tmp_path):
    sizes = ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1", "NUM_EMBEDDINGS = 8"]
    model = configs.load("t5_1_1/tiny", bindings=sizes)
    params = jax.tree.map(lambda leaf: trees.numbers(*leaf.shape), abstract_params(model))
    saved = model.apply({}, params, method=model.to_save_format)
    assert "__save_format_metadata__" in saved["encoder"]["layers_0"]
    save_t5x_checkpoint(tmp_path, {"target": saved})
    trees.assert_equal(jax.tree.map(np.asarray, restore_params(model, tmp_path)), params)
