"""What holds whatever the model says: properties of strategies, constraints and drafts on tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import (
    Automaton,
    Banned,
    BeamSearch,
    Contrastive,
    DiverseBeamSearch,
    ForcedEnd,
    ForcedPrefix,
    Greedy,
    LengthPenalty,
    MinLength,
    NoRepeatNGram,
    PromptLookup,
    RepetitionPenalty,
    Sample,
)
from flaxformer.decoding.scores import brevity_penalty
from tests.decoding.tabular import (
    EOS,
    DraftTable,
    decode,
    every_sequence,
    random_table,
    results,
    token_log_probs,
)

STEPS = 6
PROMPTS = jnp.array([[2, 3], [4, 2], [5, 5], [3, 0]])
HUGGING_FACE = BeamSearch(3, rule=LengthPenalty(1.0))
STRATEGIES = {
    "greedy": (Greedy(), None),
    "sample": (Sample(temperature=0.8, min_p=0.01, num_samples=2), None),
    "beam": (BeamSearch(3), None),
    "hugging_face": (HUGGING_FACE, None),
    "diverse": (DiverseBeamSearch(4, 2), None),
    "contrastive": (Contrastive(3, 0.4), None),
    "draft": (Greedy(), "table"),
    "draft_sample": (Sample(num_samples=2), "table"),
    "lookup": (Greedy(), PromptLookup(3)),
}
RULES = (
    Banned((4,)),
    MinLength(4),
    RepetitionPenalty(1.3),
    NoRepeatNGram(2),
    ForcedPrefix((2, 3)),  # what is forced last wins over what is banned before
    ForcedEnd(),
)
PERMITTED = [(2, 2, 3), (2, 3), (5,), (4, 5, 2, 3)]


def some(*names):
    """Every strategy; all but those named only in the long run."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in STRATEGIES]
    )


few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**16)


def found_by(name, seed, constraints=(), steps=STEPS, prompts=PROMPTS):
    strategy, draft = STRATEGIES[name]
    draft = DraftTable(random_table(seed + 1)) if draft == "table" else draft
    key = jax.random.PRNGKey(seed)
    return decode(random_table(seed), prompts, strategy, steps, constraints, draft, key)


@pytest.mark.parametrize(
    ("strategy", "cut_off"),
    [
        (BeamSearch(40, alpha=0.0), False),
        (BeamSearch(40, alpha=0.9), False),
        (BeamSearch(40, rule=LengthPenalty(0.0)), True),
        (BeamSearch(40, rule=LengthPenalty(1.5)), True),
        (BeamSearch(40, rule=LengthPenalty(1.5, "never")), True),
    ],
)
def test_a_beam_of_full_width_is_exhaustive_search(strategy, cut_off):
    steps = 3
    variables = random_table(7, vocabulary=4, sharpness=1.0)
    found = decode(variables, jnp.array([[2], [3]]), strategy, steps)
    listed = list(results(found))
    for item, prompt in enumerate(([2], [3])):
        scores = {}
        for sequence in every_sequence(4, steps, cut_off):
            penalty = float(len(sequence)) ** float(strategy.rule.exponent) if cut_off else None
            penalty = float(brevity_penalty(strategy.alpha, len(sequence) + 1)) if penalty is None else penalty
            scores[sequence] = token_log_probs(variables, prompt, sequence).sum() / penalty
        ours = {tokens: score for row, tokens, score in listed if row == item}
        best = sorted(scores, key=scores.get, reverse=True)[: len(ours)]
        assert list(ours) == best  # T5X's rule may stop before the hopeless ones have ended
        assert len(ours) == (len(scores) if cut_off else len(ours)) >= 5
        np.testing.assert_allclose(list(ours.values()), [scores[x] for x in best], rtol=1e-4)


@few
@given(seed=seeds)
@pytest.mark.parametrize("strategy", [BeamSearch(1), BeamSearch(1, rule=LengthPenalty(1.0, True)), Contrastive(1)])
def test_one_beam_or_candidate_is_greedy_search(strategy, seed):
    greedy = found_by("greedy", seed)
    one = decode(random_table(seed), PROMPTS, strategy, STEPS)
    np.testing.assert_array_equal(one.tokens, greedy.tokens)


@few
@given(seed=seeds)
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_hugging_face_scores_are_those_of_teacher_forcing(early_stopping, seed):
    variables = random_table(seed)
    strategy = BeamSearch(3, rule=LengthPenalty(0.7, early_stopping))
    for item, tokens, score in results(decode(variables, PROMPTS, strategy, STEPS)):
        forced = token_log_probs(variables, PROMPTS[item].tolist(), tokens).sum() / len(tokens) ** 0.7
        np.testing.assert_allclose(score, forced, rtol=1e-4)


@few
@given(seed=seeds)
@pytest.mark.parametrize("name", ["greedy", "contrastive", "draft", "lookup"])
def test_scores_of_rows_are_those_of_teacher_forcing(name, seed):
    for item, tokens, score in results(found_by(name, seed)):
        forced = token_log_probs(random_table(seed), PROMPTS[item].tolist(), tokens).sum()
        np.testing.assert_allclose(score, forced, rtol=1e-4, atol=1e-4)


@few
@given(seed=seeds)
@pytest.mark.parametrize("name", ["beam", "hugging_face", "diverse"])
def test_an_n_best_list_is_sorted_and_without_duplicates(name, seed):
    found = found_by(name, seed)
    assert np.all(np.diff(found.scores, axis=1) <= 0)
    listed = [(item, tokens) for item, tokens, _ in results(found)]
    assert len(set(listed)) == len(listed)


@few
@given(seed=seeds, order=st.permutations(range(4)))
@pytest.mark.parametrize("name", ["hugging_face", "diverse", "contrastive", "draft", "lookup"])
def test_permuting_the_batch_permutes_the_results(name, seed, order):
    order = np.array(order)
    straight, moved = found_by(name, seed), found_by(name, seed, prompts=PROMPTS[order])
    np.testing.assert_array_equal(moved.tokens, np.asarray(straight.tokens)[order])
    np.testing.assert_allclose(moved.scores, np.asarray(straight.scores)[order], rtol=1e-4, atol=1e-5)


@some("sample", "draft_sample")
def test_seeds_reproduce(name):
    first, again = found_by(name, 3), found_by(name, 3)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.scores, again.scores)


@few
@given(seed=seeds)
@some(*STRATEGIES)
def test_constraints_hold_on_every_output(name, seed):
    found = found_by(name, seed, RULES)
    seen = list(results(found))
    assert {item for item, *_ in seen} == set(range(4))
    for item, tokens, score in seen:
        if score < -1e6:  # a dead end
            continue
        assert 4 not in tokens
        assert tokens[:2] == (2, 3)
        assert tokens[-1] == EOS and EOS not in tokens[:-1]
        assert len(tokens) > 4
        text = (*PROMPTS[item].tolist(), *tokens)
        pairs = [text[i : i + 2] for i in range(len(text) - 1)]
        for index in range(3, len(pairs) - (len(tokens) == STEPS)):  # behind the forced prefix, before the forced end
            assert pairs[index] not in pairs[:index]


@few
@given(seed=seeds)
@some("sample", "diverse", "contrastive", "lookup")
def test_an_automaton_permits_its_sequences_only(name, seed):
    automaton = Automaton.from_sequences(PERMITTED, EOS)
    seen = [tokens for _, tokens, score in results(found_by(name, seed, (automaton,))) if score > -1e6]
    assert seen
    assert {tokens[:-1] for tokens in seen} <= set(PERMITTED)
    assert all(tokens[-1] == EOS for tokens in seen)


def test_beam_search_within_an_automaton_finds_its_best_sequences():
    variables, automaton = random_table(5), Automaton.from_sequences(PERMITTED, EOS)
    found = decode(variables, PROMPTS, BeamSearch(8, alpha=0.0), STEPS, (automaton,))
    listed = list(results(found))
    for item, prompt in enumerate(PROMPTS.tolist()):
        scores = {(*x, EOS): token_log_probs(variables, prompt, (*x, EOS)).sum() for x in PERMITTED}
        best = sorted(scores, key=scores.get, reverse=True)
        assert [tokens for row, tokens, _ in listed if row == item] == best
        ours = [score for row, _, score in listed if row == item]
        np.testing.assert_allclose(ours, [scores[x] for x in best], rtol=1e-4)  # the model's own, not renormalised


@some("greedy", "sample", "hugging_face", "draft")
def test_a_dead_end_ends_the_row_and_shows_in_its_score(name):
    """Behind token 2 everything is banned: rows end there with EOS; beams go where there is a way."""
    only_dead = Automaton.from_table([{2: 1}, {}])
    found = found_by(name, 2, (only_dead,))
    if name in ("beam", "hugging_face", "diverse"):
        assert np.all(np.asarray(found.lengths) == 0)
        assert np.all(np.asarray(found.scores) < -1e6)
    else:
        assert np.all(np.asarray(found.tokens)[..., :3] == [2, EOS, 0])
        assert np.all(np.asarray(found.scores) < -1e6)
    way_out = Automaton.from_table([{2: 1, 3: 2}, {}, {EOS: 2}])
    if name in ("beam", "hugging_face"):
        assert [tokens for _, tokens, _ in results(found_by(name, 2, (way_out,)))] == [(3, EOS)] * 4


@few
@given(seed=seeds, draft_seed=seeds)
def test_greedy_search_with_any_draft_is_greedy_search(seed, draft_seed):
    variables, steps = random_table(seed, sharpness=1.0), 9
    plain = decode(variables, PROMPTS, Greedy(), steps)
    for draft in (DraftTable(random_table(draft_seed, sharpness=1.0)), PromptLookup(3)):
        drafted = decode(variables, PROMPTS, Greedy(), steps, draft=draft)
        np.testing.assert_array_equal(drafted.tokens, plain.tokens)
        np.testing.assert_array_equal(drafted.lengths, plain.lengths)
        np.testing.assert_allclose(drafted.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_a_draft_that_knows_the_model_saves_calls():
    variables = random_table(4, sharpness=1.0)
    variables["table"] = variables["table"].at[..., EOS].set(-99.0)  # never ends
    steps = 13
    plain = decode(variables, PROMPTS, Greedy(), steps)
    drafted, final = decode(variables, PROMPTS, Greedy(), steps, draft=DraftTable(variables), raw=True)
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    assert int(final.rounds) == 3  # 1 token with the prompt, then 4 per round
    _, final = decode(variables, PROMPTS, Greedy(), steps, draft=DraftTable(random_table(9)), raw=True)
    assert 3 < int(final.rounds) <= 12
    assert int(final.free) >= 4  # the cache never ran over


@pytest.mark.parametrize("kind", ["table", "lookup"])
def test_sampling_with_a_draft_follows_the_same_distribution(kind):
    """Pearson's chi-square over all sequences of three tokens, drawn 6000 times side by side."""
    variables, steps, rows = random_table(11, vocabulary=4, sharpness=1.0), 3, 6000
    draft = DraftTable(random_table(12, vocabulary=4, sharpness=1.0)) if kind == "table" else PromptLookup(2, 1)
    prompts = jnp.tile(jnp.array([[3, 2, 3]]), (rows, 1))
    strategy = Sample(temperature=1.3, top_k=3)
    found = decode(variables, prompts, strategy, steps, draft=draft, key=jax.random.PRNGKey(5))
    counts = {}
    for _, tokens, _ in results(found):
        counts[tokens] = counts.get(tokens, 0) + 1
    logits = np.asarray(variables["table"], np.float64) / 1.3
    logits = np.where(logits >= np.sort(logits, axis=-1)[..., -3:-2], logits, -np.inf)
    cut = {"table": jnp.asarray(logits)}
    chi, cells = 0.0, 0
    for sequence in every_sequence(4, steps, cut_off=True):
        expected = rows * np.exp(token_log_probs(cut, [2, 3], sequence).sum())
        if expected == 0:
            assert sequence not in counts
            continue
        chi += (counts.get(sequence, 0) - expected) ** 2 / expected
        cells += 1
    assert cells > 10
    assert chi < cells - 1 + 4 * np.sqrt(2 * (cells - 1))  # four deviations above the mean
    for _, tokens, score in list(results(found))[:50]:
        np.testing.assert_allclose(score, token_log_probs(cut, [2, 3], tokens).sum(), rtol=1e-4)


@pytest.mark.parametrize("name", ["greedy", "draft"])
def test_checks_name_the_first_step_and_row_of_a_fault(name):
    strategy, draft = STRATEGIES[name]
    variables = random_table(0)
    plain = np.asarray(decode(variables, PROMPTS, strategy, STEPS).tokens)[:, 0]
    row = int(np.argmax((plain[:, :3] != EOS).all(axis=1)))
    a, b = plain[row, 1:3]
    broken = {**variables, "table": variables["table"].at[a, b].set(jnp.nan)}
    draft = DraftTable(variables) if draft else None
    _, final = decode(broken, PROMPTS, strategy, STEPS, draft=draft, checks=True, raw=True)
    hits = {}
    for r, tokens in enumerate(plain.tolist()):
        text = [*PROMPTS[r].tolist(), *tokens]
        faults = [t for t in range(STEPS) if text[t : t + 2] == [a, b] and EOS not in tokens[:t]]
        hits |= {r: faults[0]} if faults else {}
    where, step = int(final.fault.row), int(final.fault.step)
    assert hits[where] == step
    assert step == min(hits.values()) or name == "draft"  # rows with a draft do not go in step
    _, final = decode(variables, PROMPTS, strategy, STEPS, draft=draft, checks=True, raw=True)
    assert int(final.fault.step) == -1
