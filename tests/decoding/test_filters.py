"""Against the definitions, written out with sorting."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import filters

logits = st.lists(st.floats(-6, 6, width=32), min_size=7, max_size=7).map(lambda x: np.array([x], np.float32))
shares = st.floats(0.01, 1.0)
few = settings(max_examples=40, deadline=None)
MASKS = {name: jax.jit(getattr(filters, name)) for name in ("min_p_mask", "epsilon_mask", "eta_mask", "typical_mask")}


def probabilities(x):
    p = np.exp(np.float64(x[0]))
    return p / p.sum()


def assert_mask(name, x, share, expected, threshold):
    """Entries within rounding of the threshold may fall on either side."""
    ours = np.asarray(MASKS[name](x, share))[0]
    clear = np.abs(threshold) > 1e-5
    np.testing.assert_array_equal(ours[clear], expected[clear])
    assert ours.any()


@few
@given(x=logits, share=shares)
def test_min_p_compares_with_the_most_probable(x, share):
    p = probabilities(x)
    assert_mask("min_p_mask", x, share, p >= share * p.max(), p / p.max() - share)


@few
@given(x=logits, share=shares)
def test_epsilon_is_a_least_probability(x, share):
    p = probabilities(x)
    assert_mask("epsilon_mask", x, share, (p >= share) | (p == p.max()), p - share)


@few
@given(x=logits, share=shares)
def test_eta_falls_with_the_entropy(x, share):
    p = probabilities(x)
    eta = min(share, np.sqrt(share) * np.exp((p * np.log(p)).sum()))
    assert_mask("eta_mask", x, share, (p >= eta) | (p == p.max()), p - eta)


@few
@given(x=logits, share=shares)
def test_typical_keeps_what_is_nearest_to_the_entropy(x, share):
    p = probabilities(x)
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance, kind="stable")
    before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    kept = np.zeros(7, bool)
    kept[order] = before < share
    last = distance[kept].max()
    margin = np.minimum(np.abs(distance - last) + (distance == last), 1)
    near = np.abs(before - share).min() < 1e-5 or np.diff(np.sort(distance)).min() < 1e-5
    if not near:  # ties and sums within rounding of the share may fall on either side
        assert_mask("typical_mask", x, share, kept, margin)


def test_what_is_banned_stays_out():
    x = jnp.array([[0.0, -jnp.inf, 1.0, 0.5]])
    for name, mask in MASKS.items():
        assert not np.asarray(jax.nn.softmax(jnp.where(mask(x, 0.99), x, -jnp.inf)))[0, 1], name
