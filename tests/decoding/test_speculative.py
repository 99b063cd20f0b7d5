"""Drafts with real caches: chunks read at once and taken back, rows that part ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.decoding import BeamSearch, Contrastive, DraftModel, Greedy, PromptLookup, Sample, generate
from tests.decoding.test_model_session import SOURCE, inputs_of, model_of
from tests.decoding.tiny import tiny

PROMPTS = np.array([[3, 4, 5], [5, 0, 0], [2, 9, 0], [0, 0, 0]])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), draft_seed=st.integers(0, 2**16))
def test_any_draft_model_leaves_greedy_search_as_it_is(seed, draft_seed):
    model, variables = tiny(seed)
    options = {"strategy": Greedy(), "max_new_tokens": 9, "eos_id": 1}
    plain = generate(model, variables, PROMPTS, **options)
    drafted = generate(model, variables, PROMPTS, draft=DraftModel(*tiny(draft_seed), length=3), **options)
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    np.testing.assert_allclose(drafted.scores, plain.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["encdec_v11", pytest.param("declm_scan", marks=pytest.mark.slow)])
def test_drafts_work_with_real_models(name):
    prompts = np.array([[3, 5, 0], [0, 0, 4]])
    model, variables = model_of(name)
    options = {"max_new_tokens": 6, "eos_id": 1}
    plain = generate(model, variables, inputs_of(name, prompts), strategy=Greedy(), **options)
    draft = PromptLookup(3) if name == "encdec_v11" else DraftModel(model, variables, 2)
    drafted = generate(model, variables, inputs_of(name, prompts), strategy=Greedy(), draft=draft, **options)
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    np.testing.assert_allclose(drafted.scores, plain.scores, rtol=1e-4, atol=1e-4)


def test_contrastive_search_reads_the_hidden_states_of_real_models():
    model, variables = model_of("encdec_v11")
    options = {"max_new_tokens": 5, "eos_id": 1}
    plain = generate(model, variables, SOURCE, strategy=Greedy(), **options)
    found = generate(model, variables, SOURCE, strategy=Contrastive(2, penalty=0.0), **options)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    other = generate(model, variables, SOURCE, strategy=Contrastive(2, penalty=1.0), **options)
    assert not np.array_equal(other.tokens, plain.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": BeamSearch(2)}, r"draft was given with BeamSearch; expected Greedy\(\) or Sample"),
        ({"draft": PromptLookup}, r"draft is .*; expected DraftModel\(model, variables\) or PromptLookup\(\)"),
        ({"draft": PromptLookup(0)}, "length=0; expected at least 1 token"),
        ({"draft": PromptLookup(2, 0)}, "ngram is 0; expected at least 1"),
        (
            {"draft": DraftModel(*tiny(0, vocabulary=7), 2)},
            "vocabulary has 7 tokens and the model's 11; expected the same",
        ),
        ({"draft": DraftModel(tiny()[0], {}, 2)}, r"variables has the collections \[\]; expected 'params' among them"),
        ({"draft": "encdec_v11"}, "draft model is an encoder-decoder and the model decoder-only; expected"),
        (
            {"max_new_tokens": 58},
            r"would read 65 positions \(4 of the prompt and its start, 61 of the tokens behind\)",
        ),
    ],
)
def test_drafts_that_cannot_work_are_refused(change, message):
    model, variables = tiny()
    arguments = {"strategy": Sample(), "max_new_tokens": 4, "eos_id": 1, "draft": PromptLookup(4), **change}
    if arguments["draft"] == "encdec_v11":
        arguments["draft"] = DraftModel(*model_of("encdec_v11"))
    with pytest.raises(ValueError, match=message):
        generate(model, variables, PROMPTS, **arguments)
