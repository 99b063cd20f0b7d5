"""Steps say where tokens stand: positions, slots and validity, on either side of padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer.step import Step, write_columns

LEFT = jnp.array([[False, True, True], [True, True, True]])
RIGHT = jnp.array([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(("valid", "slots"), [(LEFT, [[1, 2], [0, 1, 2]]), (RIGHT, [[0, 1], [0, 1, 2]])])
def test_real_tokens_count_from_zero_whatever_the_padding(valid, slots):
    step = Step.start(valid, 6)
    for row, columns in enumerate(slots):
        np.testing.assert_array_equal(step.positions[row, jnp.array(columns)], np.arange(len(columns)))
    step = step.advance()
    np.testing.assert_array_equal(step.positions, [[2], [3]])
    assert int(step.slot) == 3
    step = step.advance(2)
    np.testing.assert_array_equal(step.positions, [[3, 4], [4, 5]])
    expected = np.concatenate([np.asarray(valid), np.ones((2, 3), bool)], 1)
    np.testing.assert_array_equal(step.key_valid, expected)
    held = np.asarray(jnp.where(step.key_valid, step.key_positions, -1))
    assert [sorted(row[row >= 0].tolist()) for row in held] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_rows_that_are_alike_keep_a_batch_axis_of_one():
    step = Step.start(jnp.ones((1, 1), bool), 4).advance()
    assert step.positions.shape == (1, 1) and step.key_valid.shape == (1, 4)
    np.testing.assert_array_equal(step.key_valid, [[True, True, False, False]])


def test_padding_within_a_chunk_is_not_counted():
    step = Step.start(jnp.ones((2, 1), bool), 5).advance(2, jnp.array([[True, False], [True, True]])).advance()
    np.testing.assert_array_equal(step.positions, [[2], [3]])


def test_what_lies_past_the_end_is_dropped():
    step = Step.start(jnp.ones((1, 3), bool), 4)
    for _ in range(3):
        step = step.advance()
    assert int(step.slot) == 5
    np.testing.assert_array_equal(step.key_positions, [[0, 1, 2, 3]])


def test_a_step_is_a_loop_carry():
    def body(_, step):
        return step.advance()

    first = Step.start(jnp.ones((1, 1), bool), 8).advance()
    last = jax.lax.fori_loop(0, 4, body, first)
    assert int(last.positions[0, 0]) == 5
    assert not last.fresh and last.use_cache


def test_cross_attention_remembers_only_under_a_driven_cache():
    assert Step.start(LEFT, 6).to_memory().memory
    assert Step.from_keywords(decode=True).to_memory() == Step()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="the prompt has 3 tokens and the cache 2 slots"):
        Step.start(LEFT, 2)
    with pytest.raises(ValueError, match="this step has no cache slots"):
        Step().advance()
    with pytest.raises(ValueError, match="decode=True and prefill=True"):
        Step.from_keywords(decode=True, prefill=True)


def test_branches_see_their_own_ancestors_and_nothing_else():
    step = Step.start(LEFT, 4).advance().branch(2, 3, 9)  # slots: 3 of the prompt, 3 per step of the branches
    np.testing.assert_array_equal(step.positions, [[2, 2, 2], [3, 3, 3]])
    prompt = np.repeat(np.asarray(LEFT)[:, None], 3, axis=1)
    own = np.broadcast_to(np.eye(3, dtype=bool), (2, 3, 3))
    unwritten = np.zeros((2, 3, 3), bool)
    np.testing.assert_array_equal(step.visible, np.concatenate([prompt, own, unwritten], -1))
    parents = np.array([[1, 1, 0], [2, 0, 1]])
    step = step.advance().follow(jnp.asarray(parents))
    np.testing.assert_array_equal(step.positions[:, 0], [3, 4])
    np.testing.assert_array_equal(step.visible, np.concatenate([prompt, np.eye(3, dtype=bool)[parents], own], -1))
    np.testing.assert_array_equal(step.key_positions[0, 3:], [2, 2, 2, 3, 3, 3])
    assert bool(step.key_valid[:, 3:].all())


@given(
    stored=st.integers(1, 5),
    update=st.integers(1, 6),
    slot=st.integers(0, 7),
    rows=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
)
@settings(max_examples=40, deadline=None)
def test_columns_are_written_where_they_belong_or_dropped(stored, update, slot, rows):
    before = -np.ones((rows[0], stored), np.int32)
    new = np.arange(rows[1] * update, dtype=np.int32).reshape(rows[1], update)
    expected = np.broadcast_to(before, (max(rows), stored)).copy()
    for column in range(update):
        if slot + column < stored:
            expected[:, slot + column] = new[:, column]
    np.testing.assert_array_equal(write_columns(jnp.asarray(before), jnp.asarray(new), jnp.int32(slot)), expected)


def test_what_cannot_branch_is_refused():
    with pytest.raises(ValueError, match="a step of 3 tokens was to branch"):
        Step.start(LEFT, 4).branch(2, 3, 9)
    branches = Step.start(LEFT, 4).advance().branch(2, 3, 9)
    with pytest.raises(ValueError, match="a step of 3 tokens of branches was to branch"):
        branches.branch(2, 3, 9)
    with pytest.raises(ValueError, match="branches were to take 2 tokens each"):
        branches.advance(2)
