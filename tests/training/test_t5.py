"""The steps with a real model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs
from flaxformer.training import batches, checkpoints, optimizers
from flaxformer.training.state import TrainState, initialize
from flaxformer.training.step import LossConfig, make_train_step
from tests.training import tiny

BATCH = tiny.batch(rows=8)


@pytest.fixture(scope="module")
def model():
    sizes = ["EMBED_DIM = 16", "NUM_HEADS = 2", "HEAD_DIM = 8", "MLP_DIM = 32", f"NUM_EMBEDDINGS = {tiny.VOCABULARY}"]
    sizes += ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1", "ACTIVATION_DTYPE = 'float32'", "DROPOUT_RATE = 0.1"]
    return configs.load("t5_1_1/tiny", bindings=sizes)


@pytest.fixture(scope="module")
def initial(model):
    return initialize(model, optimizers.adafactor(0.1), BATCH)


def test_a_small_t5_learns_and_survives_a_checkpoint(model, initial, tmp_path):
    state, optimizer = initial
    train_step = jax.jit(make_train_step(model.apply, optimizer, LossConfig(z_loss=1e-4)))
    state, first = train_step(state, BATCH)
    for _ in range(40):
        state, metrics = train_step(state, BATCH)
    assert metrics["loss"] < first["loss"] / 2
    checkpoints.save(tmp_path, state)
    restored, _ = checkpoints.restore(tmp_path, jax.eval_shape(lambda: state))
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    again, expected = train_step(restored, BATCH)[1], train_step(state, BATCH)[1]
    assert again["loss"] == expected["loss"]


def test_accumulated_gradients_equal_those_of_one_large_batch(model, initial):
    params = initial[0].params

    class WithoutDropout:
        @staticmethod
        def apply(*arguments, enable_dropout, **keywords):
            return model.apply(*arguments, enable_dropout=False, **keywords)

    small = [{name: x[rows] for name, x in BATCH.items()} for rows in (slice(0, 4), slice(4, 8))]
    whole, parts = optimizers.adamw(0.01, epsilon=1e-3), optimizers.adamw(0.01, epsilon=1e-3, accumulate_steps=2)
    key = jax.random.key(0)
    expected, _ = jax.jit(make_train_step(WithoutDropout.apply, whole))(TrainState.create(params, whole, key), BATCH)
    train_step = jax.jit(make_train_step(WithoutDropout.apply, parts))
    state = TrainState.create(params, parts, key)
    for batch in small:
        state, _ = train_step(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, expected.params)


def test_every_axis_of_the_parameters_has_a_role(model):
    arguments, _ = batches.module_inputs(BATCH)
    variables = jax.eval_shape(lambda key: model.init(key, *arguments, enable_dropout=False), jax.random.key(0))
    optimizer = optimizers.adafactor(
        0.1,
        min_dim_size_to_factor=8,
        logical_factor_rules=optimizers.standard_logical_factor_rules(),
        logical_axes=optimizers.logical_axes(variables),
    )
    state = jax.eval_shape(optimizer.init, variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].v_row)} == {jnp.dtype("float32")}
