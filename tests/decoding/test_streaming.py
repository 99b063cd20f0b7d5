import jax
import numpy as np
import pytest

from flaxformer.decoding import BeamSearch, Contrastive, Greedy, NotFiniteError, PromptLookup, Sample, generate, stream
from tests.decoding.tiny import tiny

PROMPTS = np.array([[3, 4, 5], [5, 0, 0], [2, 9, 0]])
OPTIONS = {"max_new_tokens": 7, "eos_id": 1}


def joined(pieces, steps=7):
    """The pieces of every row, one behind the other, and their lengths."""
    rows = {}
    for tokens, lengths in pieces:
        for place in np.ndindex(lengths.shape):
            rows.setdefault(place, []).extend(tokens[place][: lengths[place]].tolist())
            assert np.all(tokens[place][lengths[place] :] == 0)
    return {place: row for place, row in rows.items() if row}


@pytest.mark.parametrize(
    ("strategy", "draft"),
    [(Greedy(), None), (Sample(num_samples=2), None), (Contrastive(2), None), (Greedy(), PromptLookup(3))],
)
def test_the_pieces_together_are_what_generate_returns(strategy, draft):
    model, variables = tiny()
    arguments = {"strategy": strategy, "draft": draft, "rng": jax.random.PRNGKey(3), **OPTIONS}
    pieces = list(stream(model, variables, PROMPTS, every=3, **arguments))
    assert len(pieces) > 1
    whole = generate(model, variables, PROMPTS, **arguments)
    streamed = joined(pieces)
    for item in range(len(PROMPTS)):
        expected = sorted(
            row[:n].tolist()
            for row, n in zip(np.asarray(whole.tokens)[item], np.asarray(whole.lengths)[item], strict=True)
        )
        assert sorted(row for place, row in streamed.items() if place[0] == item) == expected


def test_nothing_runs_ahead_of_the_caller():
    model, variables = tiny()
    pieces = stream(model, variables, PROMPTS, strategy=Greedy(), every=1, **OPTIONS)
    first, second = next(pieces), next(pieces)
    assert first.tokens.shape == second.tokens.shape == (3, 1, 1)
    pieces.close()
    assert list(pieces) == []


def test_checks_speak_up_in_streams_and_results():
    model, variables = tiny()
    broken = jax.tree.map(lambda x: x * np.nan, variables)
    with pytest.raises(NotFiniteError, match=r"logits of step 0, row 0 \(row 0 of item 0\) are not finite"):
        list(stream(model, broken, PROMPTS, strategy=Greedy(), every=1, checks=True, **OPTIONS))
    options = {"strategy": Greedy(), "checks": True, **OPTIONS}
    with pytest.raises(NotFiniteError, match=r"logits of step 0, row 0 \(row 0 of item 0\) are not finite"):
        generate(model, broken, PROMPTS, **options)
    assert generate(model, variables, PROMPTS, **options).tokens.shape == (3, 1, 7)
    with pytest.raises(ValueError, match="checks=True was given inside of jit"):
        jax.jit(lambda v: generate(model, v, PROMPTS, **options))(variables)


def test_what_cannot_be_streamed_is_refused_at_once():
    model, variables = tiny()
    with pytest.raises(ValueError, match="BeamSearch knows its tokens only at the end"):
        stream(model, variables, PROMPTS, strategy=BeamSearch(2), **OPTIONS)
    with pytest.raises(ValueError, match="every is 0; expected at least 1"):
        stream(model, variables, PROMPTS, strategy=Greedy(), every=0, **OPTIONS)
