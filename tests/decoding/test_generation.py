"""What holds of every generation, whatever the strategy; on a one-layer model."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import BeamSearch, Greedy, Sample, generate
from flaxformer.decoding.scores import brevity_penalty
from tests.decoding.tiny import TinyLanguageModel, teacher_forced_log_probs, tiny

EOS, STEPS = 1, 6
PROMPTS = np.array([[3, 4, 5], [5, 0, 0], [2, 9, 0], [0, 0, 0]])  # padded right
BEAMS = BeamSearch(num_beams=3)
DETERMINISTIC = [Greedy(), BEAMS]

seeds = given(seed=st.integers(0, 2**16))
few = settings(max_examples=8, deadline=None)


def run(inputs, strategy, seed=0, steps=STEPS, **options):
    model, variables = tiny(seed)
    return generate(model, variables, inputs, strategy=strategy, max_new_tokens=steps, eos_id=EOS, **options)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.lengths, expected.lengths)


def hypotheses(found):
    """Every non-empty result: item, tokens up to its length, score."""
    for item in range(len(found.tokens)):
        for tokens, score, length in zip(*(np.asarray(x)[item] for x in found), strict=True):
            if length:
                yield item, tokens[:length], score


def forced_score(item, tokens, **options):
    """The log-probability that the uncached model gives to `tokens` behind an item's prompt."""
    prompt = np.concatenate([[0], PROMPTS[item][PROMPTS[item] != 0]])
    return teacher_forced_log_probs(*tiny(), prompt, tokens, len(tokens), **options).sum(), len(prompt) - 1


@few
@seeds
def test_a_beam_of_one_is_greedy_search(seed):
    greedy, beam = run(PROMPTS, Greedy(), seed), run(PROMPTS, BeamSearch(1), seed)
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_array_equal(beam.lengths, greedy.lengths)


def test_no_temperature_is_greedy_search():
    cold = run(PROMPTS, Sample(temperature=0.0, rescale_log_probs=False))
    assert_same(cold, run(PROMPTS, Greedy()))


def test_greedy_scores_are_the_teacher_forced_log_probabilities():
    for item, tokens, score in hypotheses(run(PROMPTS, Greedy())):
        np.testing.assert_allclose(score, forced_score(item, tokens)[0], rtol=1e-4, atol=1e-4)


def test_beam_scores_are_the_penalised_teacher_forced_log_probabilities():
    for item, tokens, score in hypotheses(run(PROMPTS, BEAMS)):
        expected, prompt = forced_score(item, tokens)
        if tokens[-1] == EOS:
            expected /= float(brevity_penalty(0.6, len(tokens) + prompt))
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescale", [True, False])
def test_sample_scores_are_the_teacher_forced_log_probabilities(rescale):
    strategy = Sample(temperature=0.7, num_samples=2, rescale_log_probs=rescale)
    for item, tokens, score in hypotheses(run(PROMPTS, strategy)):
        expected, _ = forced_score(item, tokens, temperature=0.7 if rescale else 1.0)
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_of_full_width_finds_the_best_of_all_sequences(alpha):
    model, variables = tiny(3, vocabulary=4)
    steps = 3
    found = generate(
        model,
        variables,
        np.array([[2], [3]]),
        strategy=BeamSearch(num_beams=27, alpha=alpha),
        max_new_tokens=steps,
        eos_id=EOS,
    )
    for item, prompt in enumerate(([0, 2], [0, 3])):
        every = [
            (*body, EOS) for length in range(steps) for body in itertools.product((0, 2, 3), repeat=length)
        ]  # all sequences that end
        scores = {}
        for sequence in every:
            padded = np.array([*sequence, *[0] * (steps - len(sequence))])
            forced = teacher_forced_log_probs(model, variables, prompt, padded, len(sequence))
            scores[sequence] = forced.sum() / float(brevity_penalty(alpha, len(sequence) + 1))
        best = sorted(scores, key=scores.get, reverse=True)
        for rank in range(5):
            length = int(found.lengths[item, rank])
            assert tuple(np.asarray(found.tokens)[item, rank, :length]) == best[rank]
            np.testing.assert_allclose(found.scores[item, rank], scores[best[rank]], rtol=1e-4, atol=1e-4)


@few
@seeds
@pytest.mark.parametrize("strategy", DETERMINISTIC)
def test_padding_left_or_right_changes_nothing(strategy, seed):
    left = np.array([np.roll(row, (row == 0).sum()) for row in PROMPTS])
    assert_same(run(left, strategy, seed), run(PROMPTS, strategy, seed))


@pytest.mark.parametrize("strategy", DETERMINISTIC)
def test_a_row_does_not_depend_on_its_padding(strategy):
    batch = run(PROMPTS, strategy)
    for item in (0, 1, 3):
        alone = run(PROMPTS[item : item + 1, : (PROMPTS[item] != 0).sum()], strategy)
        assert_same(alone, type(alone)(*(x[item : item + 1] for x in batch)))


@few
@given(seed=st.integers(0, 2**16), order=st.permutations(range(4)))
@pytest.mark.parametrize("strategy", DETERMINISTIC)
def test_permuting_the_batch_permutes_the_results(strategy, seed, order):
    order = np.array(order)
    straight = run(PROMPTS, strategy, seed)
    assert_same(run(PROMPTS[order], strategy, seed), type(straight)(*(x[order] for x in straight)))


@few
@seeds
def test_n_best_are_sorted_and_differ(seed):
    found = run(PROMPTS, BEAMS, seed)
    assert np.all(np.diff(found.scores, axis=1) <= 0)
    listed = [(item, *tokens) for item, tokens, _ in hypotheses(found)]
    assert len(set(listed)) == len(listed)


@few
@seeds
@pytest.mark.parametrize("strategy", [*DETERMINISTIC, Sample(num_samples=2)])
def test_padding_follows_the_only_eos_and_lengths_count_it(strategy, seed):
    prompts = np.where(PROMPTS == 0, 9, np.minimum(PROMPTS, 8))
    found = run(prompts, strategy, seed, pad_id=9, rng=jax.random.PRNGKey(seed))
    rows = np.asarray(found.tokens).reshape(-1, STEPS)
    for row, length in zip(rows, np.asarray(found.lengths).reshape(-1), strict=True):
        assert np.all(row[length:] == 9)
        assert np.all(row[: max(length - 1, 0)] != EOS)
        assert length == STEPS or length == 0 or row[length - 1] == EOS


def test_seeds_reproduce():
    strategy = Sample(num_samples=2)
    first, again, other = (run(PROMPTS, strategy, rng=jax.random.PRNGKey(seed)) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first.tokens, other.tokens)
    assert_same(run(PROMPTS, strategy), run(PROMPTS, strategy, rng=jax.random.PRNGKey(0)))


def test_samples_come_best_first():
    assert np.all(np.diff(run(PROMPTS, Sample(num_samples=4)).scores, axis=1) <= 0)


class CountingModel(nn.Module):
    """Wants EOS after one token of every row; tells the test about each call that was really run."""

    count: object
    wanted: object  # an array makes the module unhashable

    @nn.compact
    def __call__(self, tokens, targets=None, *, step, enable_dropout):
        jax.debug.callback(self.count)
        self.put_variable("cache", "cached_key", jnp.zeros((len(tokens), 1)))
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * 20.0 * jax.nn.one_hot(self.wanted[jnp.minimum(step.positions, 1)], 5) + jnp.zeros(
            (len(tokens), 1, 5)
        )


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(2, alpha=0.0), Sample()])
def test_the_loop_stops_when_all_rows_have_ended(strategy):
    """An unhashable model works too: it is told apart by identity."""
    calls = []
    model = CountingModel(lambda: calls.append(1), jnp.array([2, EOS]))
    with pytest.raises(TypeError):
        hash(model)
    options = {"strategy": strategy, "max_new_tokens": 30, "eos_id": EOS, "bos_id": None}
    found = generate(model, {"params": {"scale": jnp.ones(())}}, np.array([[3], [4]]), **options)
    jax.effects_barrier()
    np.testing.assert_array_equal(found.lengths[:, 0], 2)
    assert len(calls) <= 3  # the prompt, one token, and for beams one more to be sure


def test_a_second_call_compiles_nothing():
    traced = []

    class Traced(TinyLanguageModel):
        def __call__(self, *args, **kwargs):
            traced.append(1)
            return super().__call__(*args, **kwargs)

    _, variables = tiny()
    options = {"max_new_tokens": 2, "eos_id": EOS}
    generate(Traced(), variables, PROMPTS, strategy=Sample(temperature=0.5, top_p=0.5), **options)
    count = len(traced)
    generate(Traced(), variables, PROMPTS[::-1], strategy=Sample(temperature=0.9, top_p=0.6), **options)
    assert len(traced) == count > 0


def test_one_new_token_is_the_first_of_many():
    one = run(PROMPTS, Greedy(), steps=1)
    np.testing.assert_array_equal(one.tokens, run(PROMPTS, Greedy()).tokens[..., :1])
    np.testing.assert_array_equal(one.lengths, 1)


def test_generate_works_inside_jit():
    model, variables = tiny()
    options = {"strategy": Greedy(), "max_new_tokens": STEPS, "eos_id": EOS}
    found = jax.jit(lambda variables, prompts: generate(model, variables, prompts, **options))(variables, PROMPTS)
    assert_same(found, run(PROMPTS, Greedy()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_id": 11}, "eos_id is 11; expected an id of the model's vocabulary of 11 tokens"),
        ({"eos_id": -1}, "eos_id is -1; expected an id"),
        ({"inputs": PROMPTS * 1.0}, "'decoder_prompt_tokens' is of type float64; expected integers"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected an integer of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected an integer"),
        ({"max_new_tokens": 62}, r"would read 65 positions \(4 of the prompt and its start, 61 .* at most 64"),
        ({"strategy": BeamSearch(num_beams=0)}, "num_beams is 0"),
        ({"strategy": Sample(top_k=12)}, "top_k is 12; expected between 1 and the vocabulary of 11 tokens"),
        ({"strategy": Sample(top_p=1.1)}, "top_p is 1.1"),
        ({"inputs": PROMPTS[:0]}, r"shape \(0, 3\); expected at least one row"),
        ({"variables": {}}, r"variables has the collections \[\]; expected 'params'"),
    ],
)
def test_what_cannot_work_is_refused_up_front(change, message):
    model, variables = tiny()
    arguments = {"variables": variables, "inputs": PROMPTS, "strategy": Greedy(), "max_new_tokens": 4, "eos_id": EOS}
    with pytest.raises(ValueError, match=message):
        generate(model, **(arguments | change))
