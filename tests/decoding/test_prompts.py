import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding.prompts import longest_prompt, make_prompts, read_inputs

RAGGED = np.array([[5, 6, 0], [0, 0, 7], [0, 0, 0], [2, 3, 4]])


def test_prompts_end_in_the_last_column_and_start_with_the_start_token():
    prompts = make_prompts(read_inputs(RAGGED, False, 0, 9), 4, bos_id=9)
    np.testing.assert_array_equal(
        prompts.tokens * prompts.valid, [[0, 9, 5, 6], [0, 0, 9, 7], [0, 0, 0, 9], [9, 2, 3, 4]]
    )
    np.testing.assert_array_equal(prompts.valid.sum(axis=1), [3, 2, 1, 4])
    np.testing.assert_array_equal(prompts.lengths, [2, 1, 0, 3])


def test_prompts_without_start_token_are_only_moved():
    prompts = make_prompts(read_inputs(RAGGED[:2], False, 0, None), 2, bos_id=None)
    np.testing.assert_array_equal(prompts.tokens * prompts.valid, [[0, 5, 6], [0, 0, 7]])


def test_full_prompts_share_one_row_of_validity():
    inputs = read_inputs(RAGGED[3:], False, 0, 9)
    assert "valid" not in inputs
    prompts = make_prompts(inputs, 1, bos_id=9)
    assert prompts.valid.shape == (1, 4) and bool(jnp.all(prompts.valid))
    np.testing.assert_array_equal(prompts.tokens, [[9, 2, 3, 4]])


def test_valid_says_that_the_padding_id_is_a_real_token():
    tokens, valid = np.array([[5, 0, 7, 0]]), np.array([[True, True, True, False]])
    inputs = read_inputs({"decoder_prompt_tokens": tokens, "valid": valid}, False, 0, 9)
    prompts = make_prompts(inputs, 1, bos_id=9)
    np.testing.assert_array_equal(prompts.tokens[:, 1:], [[9, 5, 0, 7]])
    assert longest_prompt(inputs, 9) == 4


def test_a_prefix_moves_with_its_tokens_and_takes_the_start_token_in():
    named = {"decoder_prompt_tokens": RAGGED[:1], "decoder_causal_attention": np.array([[1, 0, 0]])}
    prompts = make_prompts(read_inputs(named, False, 0, 9), 1, bos_id=9)
    np.testing.assert_array_equal(prompts.prefix, [[False, True, True, False]])


def test_traced_prompts_are_read_without_looking():
    def ends(tokens):
        return make_prompts(read_inputs(tokens, False, 0, 9), 4, bos_id=9).lengths

    np.testing.assert_array_equal(jax.jit(ends)(RAGGED), [2, 1, 0, 3])


PROMPT, ENCODER = "decoder_prompt_tokens", "encoder_input_tokens"


@pytest.mark.parametrize(
    ("inputs", "has_encoder", "bos_id", "message"),
    [
        ({PROMPT: RAGGED}, True, 0, "expected 'encoder_input_tokens' and, for an encoder-decoder, optionally"),
        ({PROMPT: RAGGED, "labels": RAGGED}, False, 0, r"entries \['decoder_prompt_tokens', 'labels'\]; expected"),
        ({ENCODER: RAGGED, "valid": RAGGED}, True, 0, "'valid' belongs to 'decoder_prompt_tokens'"),
        (RAGGED[0], False, 0, r"shapes {'decoder_prompt_tokens': \(3,\)}; expected \[batch, length\]"),
        ({ENCODER: RAGGED, PROMPT: RAGGED[:2]}, True, 0, "one batch size for all"),
        ({ENCODER: RAGGED[..., None], PROMPT: RAGGED[..., None]}, True, 0, r"_prompt_tokens': \(4, 3, 1\)}; expected"),
        (RAGGED[:0], False, 0, r"shape \(0, 3\); expected at least one row and one column"),
        (RAGGED[:, :0], False, None, r"shape \(4, 0\); expected at least one row and one column"),
        ({PROMPT: RAGGED, "valid": RAGGED[:, :2]}, False, 0, r"'valid' has shape \(4, 2\); expected \(4, 3\)"),
        (np.array([[1, 2, 3], [5, 0, 6]]), False, 0, r"row 1 of .* has padding \(pad_id=0\) between its tokens"),
        (RAGGED, False, None, "row 2 of 'decoder_prompt_tokens' is empty and bos_id is None"),
    ],
)
def test_unreadable_inputs_are_refused(inputs, has_encoder, bos_id, message):
    with pytest.raises(ValueError, match=message):
        read_inputs(inputs, has_encoder, 0, bos_id)
