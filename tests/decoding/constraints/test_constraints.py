"""Single constraints on single rows; `tests/decoding/test_properties.py` has them under every strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import (
    Automaton,
    Banned,
    ForcedEnd,
    ForcedPrefix,
    Greedy,
    MinLength,
    NoRepeatNGram,
    RepetitionPenalty,
    generate,
)
from flaxformer.decoding.prompts import make_prompts
from flaxformer.decoding.strategies.base import Request
from tests.decoding.test_model_session import SOURCE, model_of
from tests.decoding.tiny import tiny

V, EOS = 6, 1
PROMPTS = {"decoder_prompt_tokens": jnp.array([[2, 3, 2], [4, 0, 0]]), "valid": jnp.array([[1, 1, 1], [1, 0, 0]], bool)}


@functools.partial(jax.jit, static_argnums=0)
def after(steps, constraint, scores, written):
    """`scores` behind the prompts and `written [R n]`."""
    request = Request(2, steps, EOS)
    state = constraint.init(request, make_prompts(PROMPTS, 2, 5), 1)
    for tokens in written.T:
        state = constraint.advance(state, tokens)
    return constraint.apply(scores, state, request)


def left(constraint, written, steps=4, scores=0.0):
    scores = jnp.broadcast_to(jnp.asarray(scores, jnp.float32), (2, V))
    return np.asarray(after(steps, constraint, scores, jnp.asarray(written, jnp.int32).reshape(2, -1)))


def allowed(*arguments, **options):
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in left(*arguments, **options)]


def everything_but(*tokens):
    return set(range(V)) - set(tokens)


def test_banned_tokens_are_banned_always_or_at_first():
    assert allowed(Banned((2, 3)), [[], []]) == [everything_but(2, 3)] * 2
    assert allowed(Banned([2], first=1), [[], []]) == [everything_but(2)] * 2
    assert allowed(Banned([2], first=1), [[3], [3]]) == [everything_but()] * 2


def test_a_forced_prefix_costs_nothing_and_may_differ_by_item():
    prefix = ForcedPrefix(np.array([[2, 3], [4, -1]]))
    assert allowed(prefix, [[], []]) == [{2}, {4}]
    assert allowed(prefix, [[2], [4]]) == [{3}, everything_but()]
    assert left(prefix, [[], []], scores=-3.0)[0, 2] == 0.0
    assert allowed(ForcedPrefix((2, 3)), [[2, 3], [2, 3]]) == [everything_but()] * 2


def test_eos_is_banned_at_first_and_forced_at_last():
    assert allowed(MinLength(2), [[3], [3]]) == [everything_but(EOS)] * 2
    assert allowed(MinLength(2), [[3, 3], [3, 3]]) == [everything_but()] * 2
    assert allowed(ForcedEnd(), [[3, 3], [3, 3]]) == [everything_but()] * 2
    assert allowed(ForcedEnd(), [[3, 3, 3], [3, 3, 3]]) == [{EOS}] * 2


def test_no_ngram_repeats_prompts_included():
    assert allowed(NoRepeatNGram(1), [[], []]) == [everything_but(5, 2, 3), everything_but(5, 4)]  # 5 starts rows
    assert allowed(NoRepeatNGram(2), [[], []]) == [everything_but(3), everything_but()]
    assert allowed(NoRepeatNGram(2), [[4], [5]]) == [everything_but(), everything_but(4)]
    assert allowed(NoRepeatNGram(3), [[4, 3, 2], [4, 4, 4]], steps=9) == [everything_but(4)] * 2


def test_repetition_lowers_what_occurred_before_on_either_side_of_zero():
    scores = [[3.0, -3.0, 3.0, -3.0, 3.0, -3.0]] * 2
    ours = left(RepetitionPenalty(1.5), [[4], [3]], scores=scores)
    np.testing.assert_allclose(ours, [[3, -3, 2, -4.5, 2, -4.5], [3, -3, 3, -4.5, 2, -4.5]])


def test_an_automaton_follows_its_edges():
    automaton = Automaton.from_table([{2: 1, 3: 0}, {EOS: 1, 4: 0}])
    assert allowed(automaton, [[], []]) == [{2, 3}] * 2
    assert allowed(automaton, [[2], [3]]) == [{EOS, 4}, {2, 3}]
    assert allowed(automaton, [[2, 4], [3, 2]]) == [{2, 3}, {EOS, 4}]
    trie = Automaton.from_sequences([[2, 3], [2, 4], []], EOS)
    assert allowed(trie, [[2], [2]]) == [{3, 4}] * 2
    assert allowed(trie, [[], []]) == [{2, EOS}] * 2


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Banned(()), r"Banned has tokens=\(\); expected at least one id"),
        (Banned((2,), first=0), "first=0; expected at least 1"),
        (Banned((11,)), "Banned.tokens holds the id 11; expected 0 to 10"),
        (ForcedPrefix(()), r"tokens of shape \(0,\); expected \[length\] or \[2, length\]"),
        (ForcedPrefix(np.zeros((3, 1), int)), r"tokens of shape \(3, 1\)"),
        (MinLength(-1), "tokens=-1; expected at least 0"),
        (NoRepeatNGram(0), "n=0; expected at least 1"),
        (RepetitionPenalty(0.0), "penalty=0.0; expected a number above 0"),
        (MinLength, "constraints holds .*; expected constraint objects"),
    ],
)
def test_what_cannot_work_is_refused(constraint, message):
    model, variables = tiny()
    options = {"strategy": Greedy(), "max_new_tokens": 2, "eos_id": EOS, "constraints": (constraint,)}
    with pytest.raises(ValueError, match=message):
        generate(model, variables, np.array([[2], [3]]), **options)


def test_automata_without_edges_or_states_are_refused():
    with pytest.raises(ValueError, match="no edges; expected at least one token"):
        Automaton.from_table([{}])
    with pytest.raises(ValueError, match="token 2 leads from state 0 to state 1; expected 0 to 0"):
        Automaton.from_table([{2: 1}])


@pytest.mark.parametrize("constraint", [ForcedPrefix((99,)), Automaton.from_table([{99: 0}]), Banned((99,))])
def test_ids_outside_a_known_vocabulary_are_refused(constraint):
    options = {"strategy": Greedy(), "max_new_tokens": 2, "eos_id": EOS, "constraints": (constraint,)}
    with pytest.raises(ValueError, match=f"{type(constraint).__name__}.tokens holds the id 99; expected 0 to"):
        generate(*model_of("encdec_v11"), SOURCE, **options)
