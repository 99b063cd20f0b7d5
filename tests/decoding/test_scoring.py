import numpy as np
import pytest

from flaxformer.decoding import Sample, generate, prefill, score
from tests.decoding.test_model_session import SOURCE, full_pass, model_of
from tests.decoding.tiny import teacher_forced_log_probs, tiny

PROMPTS = np.array([[3, 4, 5], [5, 0, 0]])


def test_scores_are_those_of_one_uncached_pass():
    model, variables = tiny()
    targets = np.array([[[4, 7, 1, 0], [2, 2, 2, 2]], [[9, 1, 0, 0], [8, 0, 3, 1]]])  # a 0 within is a token
    ours = score(model, variables, PROMPTS, targets)
    for item, prompt in enumerate(([0, 3, 4, 5], [0, 5])):
        for row, target in enumerate(targets[item]):
            length = len(np.trim_zeros(target, "b"))
            expected = teacher_forced_log_probs(model, variables, np.array(prompt), target, length)
            np.testing.assert_allclose(ours.tokens[item, row, :length], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(ours.tokens[item, row, length:], 0)
            np.testing.assert_allclose(ours.sequences[item, row], expected.sum(), rtol=1e-4)


def test_what_was_generated_has_the_score_it_came_with():
    model, variables = tiny()
    found = generate(model, variables, PROMPTS, strategy=Sample(num_samples=2), max_new_tokens=4, eos_id=1)
    ours = score(model, variables, PROMPTS, found.tokens, lengths=found.lengths)
    np.testing.assert_allclose(ours.sequences, found.scores, rtol=1e-4, atol=1e-5)


def test_targets_of_an_encoder_decoder_share_what_is_encoded():
    name = "encdec_v11"
    targets = np.array([[[5, 3, 1], [2, 6, 4]], [[3, 3, 1], [6, 5, 4]]])
    ours = score(*model_of(name), SOURCE, targets)
    for item in range(2):
        for row, target in enumerate(targets[item]):
            log_probs = full_pass(name, item, [0, *target[:-1]])
            np.testing.assert_allclose(ours.tokens[item, row], log_probs[np.arange(3), target], rtol=1e-4, atol=1e-4)


def test_a_prefix_stands_in_front_of_every_prompt():
    model, variables = tiny()
    shared, targets = prefill(model, variables, np.array([[3, 5]]), room=6), np.array([[4, 7, 1], [2, 0, 0]])
    whole = np.array([[3, 5, 3, 4, 5], [3, 5, 5, 0, 0]])
    ours = score(model, variables, PROMPTS, targets, prefix=shared)
    np.testing.assert_allclose(ours.tokens, score(model, variables, whole, targets).tokens, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_scored_is_refused():
    model, variables = tiny()
    with pytest.raises(ValueError, match=r"targets have shape \(3, 2\); expected \[2, length\] or \[2, n, length\]"):
        score(model, variables, PROMPTS, np.ones((3, 2), int))
    with pytest.raises(ValueError, match=r"lengths have shape \(1,\); expected \(2,\)"):
        score(model, variables, PROMPTS, np.ones((2, 2), int), lengths=np.ones(1))
    with pytest.raises(ValueError, match="bos_id is None; expected the id"):
        score(*model_of("encdec_v11"), SOURCE, np.ones((2, 2), int), bos_id=None)
    with pytest.raises(ValueError, match=r"would read 65 positions \(4 of the prompt and its start, 61 of the tokens"):
        score(model, variables, PROMPTS, np.ones((2, 62), int))
    with pytest.raises(ValueError, match=r"variables has the collections \[\]; expected 'params' among them"):
        score(model, {}, PROMPTS, np.ones((2, 2), int))
    model, variables = model_of("encdec_v11")
    with pytest.raises(ValueError, match="'targets' holds ids from 3 to 99; expected 0 to"):
        score(model, variables, SOURCE, np.array([[3, 99], [4, 5]]))
    with pytest.raises(ValueError, match="'encoder_input_tokens' holds ids from 0 to 99; expected 0 to"):
        score(model, variables, np.where(SOURCE == 4, 99, SOURCE), np.array([[3, 9], [4, 5]]))


def test_padding_behind_targets_may_be_any_number():
    model, variables = model_of("encdec_v11")
    targets = np.array([[3, 5, -100], [4, -100, -100]])
    ours = score(model, variables, SOURCE, targets, pad_id=-100)
    theirs = score(model, variables, SOURCE, np.maximum(targets, 0))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
