"""Several tokens that end a sequence, as published models for conversation have them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import (
    BeamSearch,
    Contrastive,
    DiverseBeamSearch,
    ForcedEnd,
    Greedy,
    LengthPenalty,
    MinLength,
    PromptLookup,
    generate,
)
from tests.decoding.tabular import EOS, decode, random_table, results, token_log_probs
from tests.decoding.tiny import tiny

ENDS = (EOS, 4)
PROMPTS = jnp.array([[2, 3], [5, 2], [5, 5], [3, 0]])
STEPS = 6


@pytest.mark.parametrize(("strategy", "draft"), [(Greedy(), None), (Greedy(), PromptLookup(2)), (Contrastive(3), None)])
def test_rows_end_with_whichever_comes_first(strategy, draft):
    ended = set()
    for seed in range(6):
        variables = random_table(seed)
        longer = decode(variables, PROMPTS, strategy, STEPS, draft=draft)  # only one ends it
        found = list(results(decode(variables, PROMPTS, strategy, STEPS, draft=draft, eos=ENDS)))
        for (_, whole, _), (item, tokens, score) in zip(results(longer), found, strict=True):
            ends = [index for index, token in enumerate(whole) if token in ENDS]
            assert tokens == whole[: ends[0] + 1 if ends else STEPS]
            forced = token_log_probs(variables, PROMPTS[item].tolist(), tokens).sum()
            np.testing.assert_allclose(score, forced, rtol=1e-4, atol=1e-4)
            ended.add(tokens[-1])
    assert ended >= set(ENDS)


@pytest.mark.parametrize("rule", [None, LengthPenalty(0.0)])
def test_a_beam_of_full_width_is_exhaustive_search(rule):
    """Of three tokens two end, so that too few candidates would starve the beam."""
    ends, steps, prompt = (1, 2), 4, [0, 0]
    variables = random_table(2, vocabulary=3, sharpness=1.0)
    strategy = BeamSearch(12, alpha=0.0) if rule is None else BeamSearch(12, rule=rule)
    found = decode(variables, jnp.array([prompt]), strategy, steps, eos=ends)
    ours = {tokens: score for _, tokens, score in results(found)}
    every = [(*[0] * length, end) for length, end in itertools.product(range(steps), ends)]
    every += [(0,) * steps] if rule else []
    scores = {tokens: token_log_probs(variables, prompt, tokens).sum() for tokens in every}
    assert list(ours) == sorted(scores, key=scores.get, reverse=True)[: len(ours)]
    assert len(ours) >= 5
    assert ours == pytest.approx({tokens: scores[tokens] for tokens in ours}, rel=1e-4)


@pytest.mark.parametrize("vocabulary", [1, 3])
def test_where_every_token_ends_a_sequence_results_have_one_token(vocabulary):
    variables, prompt = random_table(0, vocabulary), [0, 0]
    scores = {(token,): token_log_probs(variables, prompt, (token,)).sum() for token in range(vocabulary)}
    best = sorted(scores, key=scores.get, reverse=True)
    for strategy in (BeamSearch(4, alpha=0.0), DiverseBeamSearch(4, 2, rule=LengthPenalty(0.0)), Greedy()):
        found = decode(variables, jnp.array([prompt]), strategy, 2, eos=tuple(range(vocabulary)))
        ours = [tokens for _, tokens, _ in results(found)]
        assert ours[0] == best[0] and (ours == best or not isinstance(strategy, BeamSearch))
        np.testing.assert_array_equal(found.lengths[0], [1] * len(ours) + [0] * (found.lengths.shape[1] - len(ours)))


@pytest.mark.parametrize("strategy", [BeamSearch(3), DiverseBeamSearch(4, 2), Greedy()])
def test_constraints_know_all_ends(strategy):
    for seed in range(4):
        found = decode(random_table(seed), PROMPTS, strategy, STEPS, (MinLength(3), ForcedEnd()), eos=ENDS)
        for _, tokens, _ in results(found):
            assert len(tokens) > 3
            assert tokens[-1] in ENDS and not set(tokens[:-1]) & set(ENDS)
            assert len(tokens) < STEPS or tokens[-1] == EOS


def test_they_are_given_as_a_list_and_checked():
    model, variables = tiny()
    prompts, options = np.array([[3, 4]]), {"strategy": Greedy(), "max_new_tokens": 3}
    several = generate(model, variables, prompts, eos_id=[1, 1], **options)
    np.testing.assert_array_equal(several.tokens, generate(model, variables, prompts, eos_id=1, **options).tokens)
    with pytest.raises(ValueError, match=r"eos_id is \(1, 11\); expected an id of the model's vocabulary of 11 tokens"):
        generate(model, variables, prompts, eos_id=[1, 11], **options)
    for wrong in ([], [[1]], 1.5, "</s>"):
        with pytest.raises(ValueError, match="expected the id of the token that ends a sequence, or several"):
            generate(model, variables, prompts, eos_id=wrong, **options)
