"""A prompt that is read once: every continuation of it is what it would be behind the whole prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.caches import RingCache
from flaxformer.components.positions.rotary import Rotary
from flaxformer.decoding import (
    BeamSearch,
    Contrastive,
    DiverseBeamSearch,
    DraftModel,
    Greedy,
    Guidance,
    NoRepeatNGram,
    PromptLookup,
    RepetitionPenalty,
    generate,
    prefill,
    stream,
)
from tests.contracts import models
from tests.decoding.tiny import tiny

SHARED = np.array([[3, 5, 7, 2]])
AFTER = np.array([[4, 6, 0], [8, 0, 0], [2, 9, 4]])
WHOLE = np.array([[3, 5, 7, 2, *row] for row in AFTER])
OPTIONS = {"max_new_tokens": 5, "eos_id": 1}


def made(**attention):
    model = models.decoder_only(bias=False, make_attention=lambda: models.attention(positions=Rotary(), **attention))
    zeros = jnp.zeros((1, 4), jnp.int32)
    return model, {"params": model.init(jax.random.key(0), zeros, zeros, enable_dropout=False)["params"]}


def assert_alike(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)


@pytest.fixture(scope="module")
def full():
    return made()


@pytest.mark.parametrize(
    "more",
    [
        {"strategy": BeamSearch(3), "constraints": (NoRepeatNGram(1), RepetitionPenalty(3.0))},
        {"strategy": Contrastive(3, 0.6)},
        pytest.param(
            {"strategy": Greedy(), "draft": PromptLookup(2), "constraints": (NoRepeatNGram(1),)}, marks=pytest.mark.slow
        ),
        pytest.param({"strategy": Greedy(), "draft": "model"}, marks=pytest.mark.slow),
        pytest.param({"strategy": DiverseBeamSearch(4, 2)}, marks=pytest.mark.slow),
        pytest.param({"strategy": Greedy(), "shrink_every": 1}, marks=pytest.mark.slow),
    ],
)
def test_everything_that_looks_at_a_prompt_looks_at_its_prefix_too(full, more):
    more = more | ({"draft": DraftModel(*full, length=2)} if more.get("draft") == "model" else {})
    shared = prefill(*full, SHARED, hidden=True)
    found = generate(*full, AFTER, prefix=shared, **more, **OPTIONS)
    assert_alike(found, generate(*full, WHOLE, **more, **OPTIONS))


def test_hidden_states_of_prefixes_of_ones_own_stand_where_their_tokens_do(full):
    prefixes, after = np.array([[3, 5, 7], [2, 0, 0]]), np.array([[4, 8], [6, 0]])
    whole = np.array([[3, 5, 7, 4, 8], [2, 6, 0, 0, 0]])
    shared, options = prefill(*full, prefixes, hidden=True), {"strategy": Contrastive(3, 0.8), **OPTIONS}
    expected = generate(*full, whole, **options)
    assert_alike(generate(*full, after, prefix=shared, **options), expected)
    assert_alike(generate(*full, after[1:], prefix=shared.of_items(np.array([1])), **options), expected_of(expected, 1))


def expected_of(found, item):
    return type(found)(*(x[item : item + 1] for x in found))


def test_a_stream_may_continue_a_prefix(full):
    shared = prefill(*full, SHARED)
    rows = [[] for _ in AFTER]
    for tokens, lengths in stream(*full, AFTER, strategy=Greedy(), prefix=shared, every=2, **OPTIONS):
        for row, new, length in zip(rows, tokens[:, 0], lengths[:, 0], strict=True):
            row.extend(new[:length].tolist())
    whole = generate(*full, WHOLE, strategy=Greedy(), **OPTIONS)
    assert rows == [row[0, : length[0]].tolist() for row, length in zip(whole.tokens, whole.lengths, strict=True)]


@pytest.mark.parametrize("strategy", [pytest.param(Greedy(), marks=pytest.mark.slow), BeamSearch(num_beams=3)])
def test_one_prefix_serves_ragged_continuations_and_many_calls(full, strategy):
    """Also the penalty of a beam counts the tokens of the prefix."""
    shared = prefill(*full, SHARED)
    expected = generate(*full, WHOLE, strategy=strategy, **OPTIONS)
    for _ in range(2):
        assert_alike(generate(*full, AFTER, strategy=strategy, prefix=shared, **OPTIONS), expected)


def test_rows_may_have_prefixes_of_their_own(full):
    prefixes = np.array([[3, 5, 7], [2, 0, 0]])
    after = np.array([[4], [6]])
    whole = np.array([[3, 5, 7, 4], [2, 6, 0, 0]])
    found = generate(*full, after, strategy=Greedy(), prefix=prefill(*full, prefixes), **OPTIONS)
    assert_alike(found, generate(*full, whole, strategy=Greedy(), **OPTIONS))


def test_beams_do_not_copy_the_prefix(full):
    """Its slots are held once per item, those behind it once per beam."""
    from flaxformer.decoding.prefix import PrefixedSession
    from flaxformer.decoding.prompts import make_prompts

    model, variables = full
    shared = prefill(model, variables, SHARED)
    session = PrefixedSession(model, prefix=shared)

    def start(variables):
        prompts = make_prompts({"decoder_prompt_tokens": np.array([[4], [6]])}, 2, None)
        _, context, memory = session.prefill(session.open(variables, {}), prompts, 1 + 5)
        return session.expand(memory, 3, branching=True)

    memory = jax.eval_shape(start, variables)
    for leaf in jax.tree.leaves(memory.cache):
        assert leaf.shape == (2, models.HEADS, models.HEAD_DIM, shared.length + 1 + 3 * 5)


def test_caches_that_cannot_grow_need_room():
    model = made(cache=RingCache(3))
    with pytest.raises(ValueError, match=r"has room for 0 tokens and 7 follow.*room=7"):
        generate(*model, AFTER, strategy=Greedy(), prefix=prefill(*model, SHARED), **OPTIONS)
    shared = prefill(*model, SHARED, room=7)
    found = generate(*model, AFTER, strategy=Greedy(), prefix=shared, **OPTIONS)
    assert_alike(found, generate(*model, WHOLE, strategy=Greedy(), **OPTIONS))


def test_a_model_of_ones_own_has_prefixes_too():
    model = tiny()
    shared = prefill(*model, SHARED, room=8)
    found = generate(*model, AFTER, strategy=Greedy(), prefix=shared, **OPTIONS)
    assert_alike(found, generate(*model, WHOLE, strategy=Greedy(), **OPTIONS))


def test_what_cannot_be_continued_is_refused(full):
    two = prefill(*full, np.array([[3], [4]]))
    with pytest.raises(ValueError, match="prefix has 2 rows and there are 3 continuations"):
        generate(*full, AFTER, strategy=Greedy(), prefix=two, **OPTIONS)
    with pytest.raises(ValueError, match="prefix is dict; expected what flaxformer.decoding.prefill returned"):
        generate(*full, AFTER, strategy=Greedy(), prefix={}, **OPTIONS)
    shared = prefill(*full, SHARED)
    with pytest.raises(ValueError, match="prefix was given with guidance; expected one of them"):
        generate(*full, AFTER, strategy=Greedy(), prefix=shared, guidance=Guidance(AFTER), **OPTIONS)
    with pytest.raises(ValueError, match=r"keeps no hidden states .* make it with prefill\(..., hidden=True\)"):
        generate(*full, AFTER, strategy=Contrastive(2), prefix=shared, **OPTIONS)
    flagged = {"decoder_prompt_tokens": AFTER, "decoder_causal_attention": AFTER > 0}
    with pytest.raises(ValueError, match="prefix was given with 'decoder_causal_attention'; expected continuations"):
        generate(*full, flagged, strategy=Greedy(), prefix=shared, **OPTIONS)
    with pytest.raises(ValueError, match="'decoder_prompt_tokens' holds ids from 3 to 99; expected 0 to 16"):
        prefill(*full, np.array([[3, 99]]))
    with pytest.raises(ValueError, match="'bos_id' holds ids from 17 to 17; expected 0 to 16"):
        generate(*full, AFTER, strategy=Greedy(), bos_id=17, **OPTIONS)
    with pytest.raises(ValueError, match="would read 65 positions"):
        prefill(*tiny(), np.ones((1, 64), int))
    with pytest.raises(ValueError, match=r"variables has the collections \['decoder'\]; expected 'params' among them"):
        prefill(full[0], full[1]["params"], SHARED)
    with pytest.raises(ValueError, match="prefill got the encoder-decoder EncoderDecoder"):
        prefill(models.encoder_decoder(), full[1], SHARED)
