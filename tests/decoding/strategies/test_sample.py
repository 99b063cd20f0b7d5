import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import Sample
from flaxformer.decoding.strategies.sample import draw

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def drawn(count=400, **options):
    """Which tokens appear in many draws."""
    one = lambda key: draw(key, LOGITS, **options)  # noqa: E731
    tokens, log_probs = jax.vmap(one)(jax.random.split(jax.random.PRNGKey(0), count))
    return np.asarray(tokens[:, 0]), np.asarray(log_probs[:, 0])


def test_top_k_and_top_p_cut_what_they_should():
    assert set(drawn(temperature=1.0)[0]) == {0, 1, 2, 3}
    assert set(drawn(temperature=1.0, top_k=2)[0]) == {0, 1}
    assert set(drawn(temperature=1.0, top_p=0.9)[0]) == {0, 1, 2}
    assert set(drawn(temperature=1.0, top_k=3, top_p=0.6)[0]) == {0, 1}


def test_frequencies_follow_the_distribution():
    tokens, _ = drawn(count=4000, temperature=1.0)
    frequencies = np.bincount(tokens, minlength=4) / len(tokens)
    np.testing.assert_allclose(frequencies, [0.5, 0.3, 0.15, 0.05], atol=4 * 0.5 / np.sqrt(4000))


def test_log_probabilities_are_of_the_cut_or_of_the_whole_distribution():
    tokens, log_probs = drawn(temperature=1.0, top_k=2)
    np.testing.assert_allclose(log_probs, np.log([0.625, 0.375])[tokens], rtol=1e-5)
    tokens, log_probs = drawn(temperature=0.5, top_k=2, rescale_log_probs=False)
    np.testing.assert_allclose(log_probs, np.log([0.5, 0.3])[tokens], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-4, jnp.array(0.0)])
def test_the_coldest_takes_the_most_probable(temperature):
    tokens, log_probs = drawn(count=5, temperature=temperature)
    np.testing.assert_array_equal(tokens, 0)
    np.testing.assert_array_equal(log_probs, 0.0)
    _, log_probs = drawn(count=5, temperature=temperature, rescale_log_probs=False)
    np.testing.assert_allclose(log_probs, np.log(0.5), rtol=1e-5)


def test_each_row_may_have_its_own_temperature():
    rows = jnp.repeat(LOGITS, 200, axis=0)
    temperature = jnp.repeat(jnp.array([0.0, 2.0]), 100)
    tokens, _ = draw(jax.random.PRNGKey(0), rows, temperature)
    assert set(np.asarray(tokens[:100])) == {0}
    assert set(np.asarray(tokens[100:])) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Sample(temperature=-1.0), "temperature is -1.0; expected a number of at least 0"),
        (Sample(temperature=np.ones(3)), r"an array of 2 such\s+numbers"),
        (Sample(top_p=0.0), r"top_p is 0.0; expected a probability in \(0, 1\]"),
        (Sample(top_p=1.5), r"top_p is 1.5; expected a probability in \(0, 1\]"),
        (Sample(num_samples=0), "num_samples is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.check(2)


def test_top_k_must_fit_the_vocabulary():
    for top_k in (0, 6):
        with pytest.raises(ValueError, match=f"top_k is {top_k}; expected between 1 and the vocabulary of 5 tokens"):
            Sample(top_k=top_k).check_vocabulary(5)
