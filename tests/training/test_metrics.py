import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.training.metrics import Average, Rate, Sum, base_metrics


def test_merged_metrics_are_those_of_both_together():
    assert float(Average(6.0, 2.0).merge(Average(2.0, 2.0)).compute()) == 2.0
    assert float(Average(0.0, 0.0).compute()) == 0.0
    assert int(Sum(2).merge(Sum(3)).compute()) == 5
    rate = Rate(4.0).with_duration(2.0).merge(Rate(6.0).with_duration(3.0))
    assert float(rate.compute()) == 2.0
    assert float(Rate(1.0, inverse=True).with_duration(2.5).compute()) == 2.5


def test_a_rate_needs_a_duration():
    with pytest.raises(ValueError, match="a rate has no duration yet; expected seconds"):
        Rate(1.0).compute()


def metrics_of(batch):
    targets = jnp.array([[1, 2, 0], [2, 0, 0]])
    logits = jnp.zeros((2, 3, 4)).at[:, :, 2].set(1.0)
    return base_metrics(logits, targets, (targets > 0).astype(jnp.float32), jnp.array(6.0), jnp.array(1.5), batch)


def test_accuracy_and_losses_count_the_weighted_targets():
    metrics = metrics_of({"decoder_target_tokens": jnp.array([[1, 2, 0], [2, 0, 0]])})
    assert float(metrics["accuracy"].compute()) == pytest.approx(2 / 3)
    assert float(metrics["cross_ent_loss"].compute()) == 4.5
    assert float(metrics["loss_per_nonpadding_target_token"].compute()) == 2.0
    assert float(metrics["loss_per_all_target_tokens"].compute()) == 1.0
    np.testing.assert_allclose(metrics["non_padding_fraction/decoder_target_tokens"].compute(), 0.5)
    assert int(metrics["effective_batch_size/decoder_target_tokens"].compute()) == 2


def test_packed_rows_count_their_examples():
    ids = jnp.array([[1, 1, 2, 2, 3], [1, 2, 2, 0, 0]])
    metrics = metrics_of({"encoder_segment_ids": ids, "decoder_segment_ids": jnp.ones((2, 5), jnp.int32)})
    assert int(metrics["effective_batch_size/encoder"].compute()) == 5
    assert int(metrics["effective_batch_size/decoder"].compute()) == 2
    np.testing.assert_allclose(metrics["non_padding_fraction/overall"].compute(), 18 / 20)
