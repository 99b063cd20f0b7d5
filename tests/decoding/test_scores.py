import jax
import numpy as np

from flaxformer.decoding.scores import brevity_penalty, target_log_probs


def test_brevity_penalty_is_one_without_alpha_and_grows_with_length():
    assert float(brevity_penalty(0.0, 17)) == 1.0
    assert np.all(np.diff(brevity_penalty(0.6, np.arange(9))) > 0)


def test_target_log_probs_are_the_log_softmax_at_the_targets_times_the_weights():
    logits = np.random.RandomState(0).randn(2, 3, 5).astype(np.float32)
    targets, weights = np.array([[0, 4, 2], [1, 1, 3]]), np.array([[1.0, 1.0, 0.0], [1.0, 0.5, 1.0]])
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(target_log_probs(logits, targets), expected, rtol=1e-6)
    np.testing.assert_allclose(target_log_probs(logits, targets, weights), expected * weights, rtol=1e-6)
