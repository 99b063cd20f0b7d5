import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxformer.training import optimizers, state
from tests.training import tiny


def test_initial_state_has_the_parameters_of_the_model_and_step_zero():
    created, optimizer = state.initialize(tiny.EncoderDecoder(), optimizers.adamw(0.1), tiny.batch(), seed=3)
    assert created.step == 0 and created.step.dtype == jnp.int32
    assert created.params["Embed_0"]["embedding"].shape == (tiny.VOCABULARY, 8)
    expected = jax.eval_shape(optimizer.init, created.params)
    assert jax.tree.structure(created.opt_state) == jax.tree.structure(expected)


def test_the_seed_decides_parameters_and_dropout():
    first, second, third = (
        state.initialize(tiny.EncoderDecoder(), optax.sgd(0.1), tiny.batch(), seed=seed)[0] for seed in (0, 0, 1)
    )
    leaves = [np.asarray(x.params["Embed_0"]["embedding"]) for x in (first, second, third)]
    np.testing.assert_array_equal(leaves[0], leaves[1])
    assert not np.array_equal(leaves[0], leaves[2])
    assert first.dropout_key == second.dropout_key != third.dropout_key


def test_an_optimizer_function_gets_the_logical_axes():
    given = []

    def make(*, logical_axes):
        given.append(logical_axes)
        return optax.sgd(0.1)

    _, optimizer = state.initialize(tiny.EncoderDecoder(), make, tiny.batch())
    assert given == [None]  # the tiny model names no axes
    assert isinstance(optimizer, optax.GradientTransformation)


def test_an_optimizer_function_without_an_argument_for_axes_is_just_called():
    _, optimizer = state.initialize(tiny.Tables(), lambda: optax.sgd(0.1), tiny.batch())
    assert isinstance(optimizer, optax.GradientTransformation)
