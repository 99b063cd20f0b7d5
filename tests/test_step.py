"""Steps say where tokens stand: positions, slots and validity, on either side of padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.step import Step

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
