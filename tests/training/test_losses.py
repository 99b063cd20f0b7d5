import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer.training import losses
from tests.training import recorded

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, **CLOSE)


@pytest.mark.parametrize("z_loss", [0.0, 0.0001, 0.1])
def test_distribution_values_and_gradients_are_those_recorded(z_loss):
    _, inputs, outputs = recorded.load("losses_cross_entropy_with_logits")
    logits, targets = inputs["logits"], inputs["targets"]
    (loss, z), pullback = jax.vjp(lambda x, t, c: losses.cross_entropy_with_logits(x, t, c), logits, targets, z_loss)
    same(loss, outputs[f"loss_z{z_loss}"])
    same(z, outputs[f"zloss_z{z_loss}"])
    ones = jnp.ones_like(loss)
    by_logits, by_targets, by_z_loss = pullback((ones, 0 * ones))
    same(by_logits, outputs[f"grad_logits_z{z_loss}"])
    same(by_targets, outputs[f"grad_targets_z{z_loss}"])
    assert by_z_loss == 0
    same(pullback((0 * ones, ones))[0], outputs[f"grad_of_zloss_output_z{z_loss}"])


def test_soft_targets_are_those_recorded():
    about, inputs, outputs = recorded.load("losses_cross_entropy_soft_targets")

    def total(logits):
        loss, z = losses.cross_entropy_with_logits(logits, inputs["targets"], about["call"]["z_loss"])
        return jnp.sum(loss), (loss, z)

    gradient, (loss, z) = jax.grad(total, has_aux=True)(inputs["logits"])
    same(loss, outputs["loss"])
    same(z, outputs["z_loss"])
    same(gradient, outputs["grad_logits"])


WEIGHTED = recorded.load("losses_compute_weighted_cross_entropy")


@pytest.mark.parametrize("case", WEIGHTED.about["call"])
def test_weighted_cross_entropy_is_that_recorded(case):
    call = dict(WEIGHTED.about["call"][case])
    if call["weights"]:
        call["weights"] = WEIGHTED.inputs[call["weights"].removeprefix("inputs/")]
    result = losses.compute_weighted_cross_entropy(WEIGHTED.inputs["logits"], WEIGHTED.inputs["targets"], **call)
    same(jnp.stack(result), WEIGHTED.outputs[case])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_token_gradient_is_that_of_the_smoothed_distribution(label_smoothing):
    logits, targets, weights = (WEIGHTED.inputs[name] for name in ("logits", "targets", "fractional_weights"))
    vocabulary = logits.shape[-1]
    low = label_smoothing / (vocabulary - 1)
    smoothed = jax.nn.one_hot(targets, vocabulary) * (1 - label_smoothing - low) + low

    def reference(x):
        return jnp.sum(losses.cross_entropy_with_logits(x, smoothed, 0.01)[0] * weights)

    def ours(x):
        return losses.compute_weighted_cross_entropy(x, targets, weights, label_smoothing, 0.01)[0]

    same(jax.grad(ours)(logits), jax.grad(reference)(logits))


def test_gradient_of_the_token_loss_is_its_derivative():
    logits, targets = jnp.asarray(WEIGHTED.inputs["logits"]), WEIGHTED.inputs["targets"]

    def smooth(x):  # without the custom gradient
        log_partition = jax.nn.logsumexp(x, axis=-1)
        hit = optax.softmax_cross_entropy_with_integer_labels(x, targets)
        everything = jnp.sum(log_partition[..., None] - x, axis=-1)
        return jnp.sum((0.9 - 0.02) * hit + 0.02 * everything + 0.05 * log_partition**2)

    def ours(x):
        return jnp.sum(losses.token_cross_entropy(x, targets, label_smoothing=0.1, z_loss=0.05)[0])

    same(ours(logits), smooth(logits))
    same(jax.grad(ours)(logits), jax.grad(smooth)(logits))


def test_a_perfect_prediction_costs_nothing():
    smoothed = jnp.array([[0.9, 0.05, 0.05]])
    loss, *_ = losses.compute_weighted_cross_entropy(jnp.log(smoothed), jnp.array([0]), label_smoothing=0.1)
    assert abs(float(loss)) < 1e-6


def test_ids_outside_the_vocabulary_are_no_token_and_leave_no_nan():
    logits = jnp.asarray(WEIGHTED.inputs["logits"][0])
    targets = jnp.array([1, -100, 2, 6, 0])
    weights = jnp.array([1.0, 0.0, 1.0, 0.0, 1.0])

    def total(x, ids):
        return losses.compute_weighted_cross_entropy(x, ids, weights, 0.1, 1e-3)[0]

    known = jnp.where(weights > 0, targets, 0)
    same(total(logits, targets), total(logits, known))
    same(jax.grad(total)(logits, targets), jax.grad(total)(logits, known))


def test_a_vocabulary_of_one_and_smoothing_of_one_are_finite():
    loss, *_ = losses.compute_weighted_cross_entropy(jnp.zeros((2, 1)), jnp.zeros(2, int), label_smoothing=0.1)
    assert jnp.isfinite(loss)
    loss, *_ = losses.compute_weighted_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, int), label_smoothing=1.0)
    same(loss, 2 * (np.log(3) - np.log(2)))


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 300)), jnp.bfloat16)
    targets = jnp.arange(4)
    narrow, _ = losses.token_cross_entropy(logits, targets, label_smoothing=0.1, z_loss=0.01)
    wide, _ = losses.token_cross_entropy(logits.astype(jnp.float32), targets, label_smoothing=0.1, z_loss=0.01)
    assert narrow.dtype == jnp.float32
    same(narrow, wide)
    gradient = jax.grad(lambda x: jnp.sum(losses.token_cross_entropy(x, targets)[0]))(logits)
    assert gradient.dtype == jnp.bfloat16


def test_the_training_step_needs_no_second_array_over_the_vocabulary():
    logits, targets = jax.ShapeDtypeStruct((4, 16, 4096), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.int32)

    def total(x, ids):
        return losses.compute_weighted_cross_entropy(x, ids, None, 0.1, 1e-4)[0]

    compiled = jax.jit(jax.value_and_grad(total)).lower(logits, targets).compile()
    one_array = 4 * 16 * 4096 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < one_array / 4


NORMALIZING = recorded.load("losses_normalizing_factor")
BATCHES = {
    "no_weights": {"decoder_target_tokens": "decoder_target_tokens"},
    "weights": {"decoder_target_tokens": "decoder_target_tokens", "decoder_loss_weights": "decoder_loss_weights"},
    "packed": {
        "decoder_target_tokens": "packed_target_tokens",
        "decoder_loss_weights": "packed_loss_weights",
        "decoder_segment_ids": "packed_segment_ids",
        "decoder_positions": "packed_positions",
    },
    "empty_row": {"decoder_target_tokens": "decoder_target_tokens", "decoder_loss_weights": "weights_with_empty_row"},
}
OPTIONS = ["NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE", "233.5", "None"]
COMBINATIONS = [(option, kind) for option in OPTIONS for kind in ("no_weights", "weights")]
COMBINATIONS += [("average_per_sequence", "packed"), ("average_per_sequence", "empty_row")]


@pytest.mark.parametrize(("option", "kind"), COMBINATIONS)
def test_normalizing_factor_and_weights_are_those_recorded(option, kind):
    batch = {feature: NORMALIZING.inputs[name] for feature, name in BATCHES[kind].items()}
    argument = {"233.5": 233.5, "None": None}.get(option, option)
    results = losses.get_loss_normalizing_factor_and_weights(argument, batch)
    for name, result in zip(("factor", "weights"), results, strict=True):
        expected = NORMALIZING.outputs.get(f"{option}__{kind}/{name}")
        assert result is None if expected is None else np.testing.assert_allclose(result, expected, **CLOSE) is None


def test_sum_of_weights_per_segment_is_that_recorded():
    actual = losses.sum_weights_per_segment(
        NORMALIZING.inputs["packed_loss_weights"], NORMALIZING.inputs["packed_segment_ids"]
    )
    same(actual, NORMALIZING.outputs["sum_weights_per_segment"])


def test_enum_members_are_accepted():
    batch = {"decoder_target_tokens": jnp.array([[3, 4, 0]])}
    factor, _ = losses.get_loss_normalizing_factor_and_weights(
        losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS, batch
    )
    assert factor == 2


def test_unknown_normalizing_factor_lists_the_known_ones():
    with pytest.raises(ValueError, match="'PER_WORD'; expected .*NUM_REAL_TARGET_TOKENS.*AVERAGE_PER_SEQUENCE"):
        losses.get_loss_normalizing_factor_and_weights("PER_WORD", {"decoder_target_tokens": jnp.ones((1, 2), int)})


def test_shapes_that_do_not_fit_the_logits_are_named():
    logits = jnp.zeros((2, 3, 5))
    with pytest.raises(ValueError, match=r"targets has shape \(2, 3, 5\); expected \(2, 3\)"):
        losses.compute_weighted_cross_entropy(logits, jnp.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match=r"weights has shape \(2,\); expected \(2, 3\)"):
        losses.compute_weighted_cross_entropy(logits, jnp.zeros((2, 3), int), jnp.ones(2))
