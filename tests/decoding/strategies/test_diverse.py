import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import BeamSearch, DiverseBeamSearch, ForcedPrefix, LengthPenalty
from tests.decoding.tabular import EOS, decode, log_probs, random_table, results

RULE = LengthPenalty(1.0)


def by_hand(variables, prompt, steps, groups, size, diversity):
    """Algorithm 1 of Vijayakumar et al. with dictionaries: the best hypotheses of all groups."""
    table = log_probs(variables)
    live = [{(): 0.0} for _ in range(groups)]
    finished = [{} for _ in range(groups)]
    closed = [False] * groups
    for step in range(1, steps + 1):
        counts = np.zeros(table.shape[-1])
        for g in range(groups):
            candidates = []
            for tokens, score in live[g].items():
                text = (0, *prompt, *tokens)
                for token, value in enumerate(table[text[-2], text[-1]] - diversity * counts):
                    candidates.append((score + value, (*tokens, token)))
            candidates = sorted(candidates, reverse=True)[: 2 * size]
            if not closed[g]:
                for score, tokens in candidates[:size]:
                    if tokens[-1] == EOS or step == steps:
                        finished[g][tokens] = score / len(tokens)
                best = sorted(finished[g], key=finished[g].get, reverse=True)[:size]
                finished[g] = {tokens: finished[g][tokens] for tokens in best}
            going_on = [(score, tokens) for score, tokens in candidates if tokens[-1] != EOS][:size]
            live[g] = {tokens: score for score, tokens in going_on}
            for _, tokens in going_on:
                counts[tokens[-1]] += 1
            full = len(finished[g]) == size
            closed[g] |= full and going_on[0][0] / step <= min(finished[g].values())
    once = {}  # groups may come to the same one
    for tokens, score in itertools.chain(*(group.items() for group in finished)):
        once[tokens] = max(score, once.get(tokens, score))
    return sorted(once.values(), reverse=True)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_groups_are_searched_one_after_another(seed):
    variables, prompts, steps = random_table(seed), [[2, 3], [5, 4]], 4
    found = decode(variables, jnp.array(prompts), DiverseBeamSearch(4, 2, 0.7, rule=RULE), steps)
    listed = list(results(found))
    for item, prompt in enumerate(prompts):
        ours = [score for row, _, score in listed if row == item]
        np.testing.assert_allclose(ours, by_hand(variables, prompt, steps, 2, 2, 0.7), rtol=1e-4)


def test_what_is_forced_costs_no_group_anything():
    variables, prompt = random_table(3), [2, 3]
    found = decode(variables, jnp.array([prompt]), DiverseBeamSearch(4, 4, 9.0, rule=RULE), 2, (ForcedPrefix((5,)),))
    expected, counts = {}, np.zeros(6)
    for _ in range(4):
        second = log_probs(variables)[3, 5] - 9.0 * counts
        expected[5, int(second.argmax())] = second.max() / 2
        counts[second.argmax()] += 1
    listed = {tokens: score for _, tokens, score in results(found)}
    assert listed == pytest.approx(expected, rel=1e-4)


def test_one_group_is_beam_search():
    variables, prompts = random_table(1), jnp.array([[2, 3], [5, 4]])
    one = decode(variables, prompts, DiverseBeamSearch(4, 1, rule=RULE), 5)
    plain = decode(variables, prompts, BeamSearch(4, rule=RULE), 5)
    np.testing.assert_array_equal(one.tokens, plain.tokens)
    np.testing.assert_allclose(one.scores, plain.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (DiverseBeamSearch(5, 2), "num_beams is 5 and num_groups 2; expected"),
        (DiverseBeamSearch(4, 0), "num_beams is 4 and num_groups 0"),
        (DiverseBeamSearch(4, 2, diversity=-1.0), "diversity is -1.0; expected at least 0"),
        (DiverseBeamSearch(4, 2, num_return=5), "num_return is 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.check(1)
