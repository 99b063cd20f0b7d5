"""Beam search as a state machine, without a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import BeamSearch
from flaxformer.decoding.strategies.base import Request


def run(strategy, table, steps, eos_id=1):
    """Searches a first-order model: `table [B V V]` of logits by the token before, starting from token 0."""
    request = Request(len(table), steps, eos_id)
    state = strategy.start(request, jnp.zeros((len(table),), jnp.int32))
    tokens = jnp.zeros((len(table) * strategy.width,), jnp.int32)
    items = jnp.repeat(jnp.arange(len(table)), strategy.width)
    updates = 0
    while not bool(strategy.done(state)):
        tokens, _, state = strategy.update(jnp.asarray(table)[items, tokens], state)
        updates += 1
    return strategy.finish(state), updates


def test_the_search_ends_when_nothing_can_catch_up():
    table = np.full((1, 4, 4), -9.0, np.float32)
    table[:, :, 1] = 9.0  # EOS all but certain
    found, updates = run(BeamSearch(num_beams=2, alpha=0.0), table, steps=50)
    assert updates == 2
    np.testing.assert_array_equal(found.tokens[0, 0, :2], [1, 0])
    np.testing.assert_array_equal(found.lengths[0], [1, 2])


def test_hypotheses_that_never_started_are_not_returned():
    table = np.zeros((1, 2, 2), np.float32)  # fewer continuations than beams
    table[:, :, 1] = 9.0
    found, _ = run(BeamSearch(num_beams=4), table, steps=2)
    np.testing.assert_array_equal(found.lengths, [[1, 2, 0, 0]])
    assert np.all(found.scores[0, 2:] < -1e6)
    np.testing.assert_array_equal(found.tokens[0], [[1, 0], [0, 1], [0, 0], [0, 0]])


def test_an_item_without_finished_hypotheses_returns_plain_log_probabilities():
    table = np.log(np.array([[[0.5, 1e-9, 0.3, 0.1, 0.05, 0.05]] * 6], np.float32))
    found, _ = run(BeamSearch(num_beams=2), table, steps=3)
    np.testing.assert_allclose(found.scores[0], np.log([0.5**3, 0.5**2 * 0.3]), rtol=1e-5)
    np.testing.assert_array_equal(found.lengths, [[3, 3]])


def test_min_log_prob_gives_up():
    table = np.zeros((1, 4, 4), np.float32)
    table[..., 1] = -99
    _, updates = run(BeamSearch(num_beams=2, min_log_prob=-2.0), table, steps=9)
    assert updates == 2


def test_num_return_keeps_the_best():
    table = np.random.RandomState(0).randn(2, 5, 5).astype(np.float32)
    everything, _ = run(BeamSearch(num_beams=4), table, steps=5)
    best, _ = run(BeamSearch(num_beams=4, num_return=2), table, steps=5)
    for all_of, first in zip(everything, best, strict=True):
        np.testing.assert_array_equal(all_of[:, :2], first)


def test_alpha_changes_without_a_new_compilation():
    compiled = []

    @jax.jit
    def width(strategy):
        compiled.append(strategy)
        return strategy.alpha * strategy.width

    assert float(width(BeamSearch(4, alpha=0.5))) == 2.0
    assert float(width(BeamSearch(4, alpha=1.0))) == 4.0
    assert len(compiled) == 1
    assert hash(BeamSearch(4)) == hash(BeamSearch(4))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="num_beams is 0; expected at least 1"):
        BeamSearch(num_beams=0).check(1)
    for number in (0, 5):
        with pytest.raises(ValueError, match=f"num_return is {number}; expected between 1 and num_beams=4"):
            BeamSearch(num_beams=4, num_return=number).check(1)
