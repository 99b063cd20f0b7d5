import jax
import numpy as np
import pytest

from flaxformer.decoding import (
    BeamSearch,
    ForcedPrefix,
    Greedy,
    LengthPenalty,
    NoRepeatNGram,
    PromptLookup,
    Sample,
    generate,
    shrinking,
)
from tests.decoding.test_model_session import model_of
from tests.decoding.tiny import tiny

PROMPTS = np.random.RandomState(0).randint(2, 11, (4, 2))
EOS = 4
ENDS = np.where(np.eye(4, 6, dtype=bool), EOS, -1)  # item i has ended after i + 1 tokens
OPTIONS = {"max_new_tokens": 6, "eos_id": EOS}


@pytest.mark.parametrize(
    "more",
    [
        {"strategy": Greedy()},
        pytest.param({"strategy": BeamSearch(2, rule=LengthPenalty(1.0, True))}, marks=pytest.mark.slow),
        pytest.param({"strategy": Greedy(), "draft": PromptLookup(2)}, marks=pytest.mark.slow),
    ],
)
def test_items_that_have_ended_leave_and_the_results_stay(more, monkeypatch):
    model, variables = tiny(1)
    sizes = []
    go_on = shrinking.go_on
    monkeypatch.setattr(shrinking, "go_on", lambda plan, *rest: sizes.append(plan.request.batch) or go_on(plan, *rest))
    arguments = {"constraints": (NoRepeatNGram(2), ForcedPrefix(ENDS)), **more, **OPTIONS}
    plain = generate(model, variables, PROMPTS, **arguments)
    shrunk = generate(model, variables, PROMPTS, shrink_every=1, **arguments)
    np.testing.assert_array_equal(shrunk.tokens, plain.tokens)
    np.testing.assert_array_equal(shrunk.lengths, plain.lengths)
    np.testing.assert_allclose(shrunk.scores, plain.scores, rtol=1e-4, atol=1e-5)
    assert sizes[0] == 4
    assert min(sizes) <= 2
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_what_belongs_to_an_item_goes_with_it():
    """Temperatures, encoder outputs, scanned caches."""
    model, variables = model_of("encdec_scan")
    source = np.array([[5, 3, 6, 2, 4], [4, 4, 0, 0, 0], [2, 3, 0, 0, 0], [6, 6, 6, 0, 0]])
    strategy = Sample(temperature=np.zeros(4, np.float32), rescale_log_probs=False)
    arguments = {"strategy": strategy, "constraints": (ForcedPrefix(ENDS[[1, 3, 0, 2]]),), "eos_id": EOS}
    plain = generate(model, variables, source, max_new_tokens=8, **arguments)
    shrunk = generate(model, variables, source, max_new_tokens=8, shrink_every=1, **arguments)
    np.testing.assert_array_equal(shrunk.tokens, plain.tokens)
    np.testing.assert_allclose(shrunk.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_where_it_cannot_work_is_refused():
    model, variables = tiny(1)
    with pytest.raises(ValueError, match="shrink_every is 0; expected at least 1"):
        generate(model, variables, PROMPTS, strategy=Greedy(), shrink_every=0, **OPTIONS)
    options = {"strategy": Greedy(), "shrink_every": 2, **OPTIONS}
    with pytest.raises(ValueError, match="a call outside of jit"):
        jax.jit(lambda v: generate(model, v, PROMPTS, **options))(variables)
