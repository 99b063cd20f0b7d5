import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import Contrastive
from tests.decoding.tabular import EOS, decode, random_table


def by_hand(variables, prompt, steps, k, penalty):
    """Su et al.'s equation 5, token by token."""
    table, states = (np.asarray(variables[name], np.float64) for name in ("table", "states"))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    text, written = [0, *prompt], []
    while len(written) < steps and EOS not in written:
        logits = table[text[-2], text[-1]]
        probabilities = np.exp(logits) / np.exp(logits).sum()
        candidates = np.argsort(-logits)[:k]
        similar = (states[candidates] @ states[text[1:]].T).max(axis=1)
        best = candidates[np.argmax((1 - penalty) * probabilities[candidates] - penalty * similar)]
        text.append(best)
        written.append(int(best))
    return written


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), penalty=st.sampled_from([0.0, 0.3, 0.9]))
def test_the_choice_is_that_of_the_paper(seed, penalty):
    variables, prompts = random_table(seed, sharpness=1.0), [[2, 3], [5, 4]]
    found = decode(variables, jnp.array(prompts), Contrastive(3, penalty), 6)
    for item, prompt in enumerate(prompts):
        expected = by_hand(variables, prompt, 6, 3, penalty)
        assert np.asarray(found.tokens)[item, 0, : len(expected)].tolist() == expected


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Contrastive(top_k=0), "top_k is 0; expected at least 1"),
        (Contrastive(penalty=1.5), "penalty is 1.5; expected a number from 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.check(1)


def test_candidates_must_fit_the_vocabulary():
    with pytest.raises(ValueError, match="top_k is 9; expected between 1 and the vocabulary of 6"):
        Contrastive(top_k=9).check_vocabulary(6)
