import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer.training import losses, optimizers
from flaxformer.training.batches import forward
from flaxformer.training.state import TrainState, initialize
from flaxformer.training.step import LossConfig, loss_fn, make_eval_step, make_train_step, mean_metrics
from tests.training import tiny

MODEL = tiny.EncoderDecoder(dropout_rate=0.0)
BATCH = tiny.batch()


@pytest.fixture(scope="module")
def params():
    return initialize(MODEL, optax.sgd(0.1), BATCH)[0].params


def test_loss_is_the_mean_over_weighted_targets(params):
    config = LossConfig(label_smoothing=0.1, z_loss=0.01)
    loss, metrics = loss_fn(MODEL.apply, params, BATCH, None, config)
    logits, weights = forward(MODEL.apply, params, BATCH), BATCH["decoder_loss_weights"]
    total, z_loss, weight_sum = losses.compute_weighted_cross_entropy(
        logits, BATCH["decoder_target_tokens"], weights, 0.1, 0.01
    )
    hits = (np.argmax(logits, -1) == BATCH["decoder_target_tokens"]) * weights
    np.testing.assert_allclose(loss, total / weight_sum, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], total / weight_sum, rtol=1e-6)
    np.testing.assert_allclose(metrics["z_loss"], z_loss / weight_sum, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], hits.sum() / weight_sum, rtol=1e-6)
    assert metrics["weight_sum"] == 16 and metrics["tokens"] == 4 * 6 + 16
    assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}


def test_normalisation_scales_the_loss_but_not_its_metric(params):
    mean, expected = loss_fn(MODEL.apply, params, BATCH, None, LossConfig())
    total, metrics = loss_fn(MODEL.apply, params, BATCH, None, LossConfig(loss_normalizing_factor=None))
    np.testing.assert_allclose(total, 16 * mean, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


def test_a_batch_without_targets_has_no_loss_and_no_gradient(params):
    empty = BATCH | {"decoder_loss_weights": np.zeros((4, 6), np.float32)}
    gradients, metrics = jax.grad(lambda p: loss_fn(MODEL.apply, p, empty, None, LossConfig()), has_aux=True)(params)
    assert metrics["loss"] == 0 and metrics["weight_sum"] == 0
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_a_batch_without_weights_counts_targets_that_are_not_padding(params):
    bare = {name: x for name, x in BATCH.items() if name != "decoder_loss_weights"}
    expected, _ = loss_fn(MODEL.apply, params, BATCH, None, LossConfig())
    actual, metrics = loss_fn(MODEL.apply, params, bare, None, LossConfig())
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert metrics["weight_sum"] == 16


def test_unweighted_sums_count_every_position(params):
    bare = {name: x for name, x in BATCH.items() if name != "decoder_loss_weights"}
    _, metrics = loss_fn(MODEL.apply, params, bare, None, LossConfig(loss_normalizing_factor=None))
    assert metrics["weight_sum"] == 24


def test_training_lowers_the_loss_and_counts_steps():
    model = tiny.EncoderDecoder(dropout_rate=0.1)
    state, optimizer = initialize(model, optimizers.adamw(0.05), BATCH)
    train_step = jax.jit(make_train_step(model.apply, optimizer))
    _, first = train_step(state, BATCH)
    for _ in range(30):
        state, metrics = train_step(state, BATCH)
    assert state.step == 30 and metrics["loss"] < first["loss"] / 2
    assert metrics["gradient_norm"] > 0
    assert make_eval_step(model.apply)(state.params, BATCH)["accuracy"] > 0.9


def test_dropout_of_a_step_depends_on_its_number_only():
    model = tiny.EncoderDecoder(dropout_rate=0.5)
    state, optimizer = initialize(model, optax.sgd(0.0), BATCH)
    train_step = jax.jit(make_train_step(model.apply, optimizer))
    one, first = train_step(state, BATCH)
    _, again = train_step(state, BATCH)
    _, second = train_step(one, BATCH)
    assert first["loss"] == again["loss"] != second["loss"]


def test_a_step_does_not_change_the_form_of_the_state():
    state, optimizer = initialize(MODEL, optimizers.adafactor(0.01, beta1=0.9, accumulate_steps=2), BATCH)
    after = jax.eval_shape(make_train_step(MODEL.apply, optimizer), state, BATCH)[0]
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert describe(after) == describe(jax.eval_shape(lambda: state))


def test_accumulated_small_batches_equal_one_large_batch(params):
    small = [{name: x[rows] for name, x in BATCH.items()} for rows in (slice(0, 2), slice(2, 4))]
    whole, parts = optimizers.adamw(0.1), optimizers.adamw(0.1, accumulate_steps=2)
    key = jax.random.key(0)
    expected, _ = make_train_step(MODEL.apply, whole)(TrainState.create(params, whole, key), BATCH)
    state = TrainState.create(params, parts, key)
    for batch in small:
        state, _ = make_train_step(MODEL.apply, parts)(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, expected.params)


def test_eval_has_no_gradient_norm(params):
    assert "gradient_norm" not in make_eval_step(MODEL.apply)(params, BATCH)


def test_metrics_of_parts_combine_to_those_of_the_whole(params):
    eval_step = make_eval_step(MODEL.apply)
    ragged = BATCH | {
        "decoder_loss_weights": BATCH["decoder_loss_weights"] * np.array([[1], [0], [1], [1]], np.float32)
    }
    parts = [{name: x[rows] for name, x in ragged.items()} for rows in (slice(0, 2), slice(2, 4))]
    combined = mean_metrics([eval_step(params, part) for part in parts])
    for name, value in eval_step(params, ragged).items():
        np.testing.assert_allclose(combined[name], value, rtol=1e-5)
