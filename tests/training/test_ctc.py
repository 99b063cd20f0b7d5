"""The loss is the sum over all ways to lay labels on frames; the best way is read back."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.training.ctc import best_labels, ctc_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 3)).astype(np.float32)


def collapsed(path, blank):
    kept = [label for label, before in zip(path, (None, *path), strict=False) if label != before]
    return [label for label in kept if label != blank]


@pytest.mark.parametrize("blank", [0, 2])
def test_all_ways_count(blank):
    first, second = (label for label in range(3) if label != blank)
    labels = np.array([[first, first], [second, -100]])
    valid = np.arange(4) < np.array([[4], [3]])
    losses = ctc_loss(jnp.asarray(LOGITS), jnp.asarray(labels), valid=jnp.asarray(valid), blank_id=blank)
    for row, (said, frames) in enumerate([([first, first], 4), ([second], 3)]):
        log_probs = LOGITS[row] - np.log(np.exp(LOGITS[row]).sum(axis=-1, keepdims=True))
        paths = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path, blank) == said]
        total = sum(np.exp(sum(log_probs[t, label] for t, label in enumerate(path))) for path in paths)
        np.testing.assert_allclose(losses[row], -np.log(total), rtol=1e-4)


def test_the_best_way_without_repeats_and_blanks():
    scores = np.eye(4)[[[3, 3, 0, 3, 2, 2], [1, 0, 0, 2, 3, 3]]]
    labels, lengths = best_labels(jnp.asarray(scores), valid=jnp.arange(6) < jnp.array([[6], [4]]))
    assert labels.tolist() == [[3, 3, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]] and lengths.tolist() == [3, 2]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"logits have shape \(2, 4, 3\) and labels \(1, 2\); expected"):
        ctc_loss(jnp.asarray(LOGITS), jnp.ones((1, 2), jnp.int32))
