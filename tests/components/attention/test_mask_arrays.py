import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import mask_arrays
from flaxformer.components.attention.masks import Causal, Padding, Segments, prefix_lm

TOKENS = jnp.array([[3, 4, 5, 0], [6, 0, 0, 0]])


def test_attention_mask_applies_its_function_to_all_pairs():
    mask = mask_arrays.make_attention_mask(TOKENS > 0, jnp.ones((2, 3)))
    assert mask.shape == (2, 1, 4, 3) and mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask[:, 0, :, 0], TOKENS > 0)
    equal = mask_arrays.make_attention_mask(TOKENS, TOKENS[:, :2], jnp.equal, extra_batch_dims=2, dtype=bool)
    assert equal.shape == (1, 1, 2, 1, 4, 2) and equal.dtype == bool
    np.testing.assert_array_equal(equal[0, 0, :, 0], TOKENS[:, :, None] == TOKENS[:, None, :2])


def test_causal_mask_is_a_triangle_for_any_batch_axes():
    mask = mask_arrays.make_causal_mask(jnp.zeros((2, 3, 4)), extra_batch_dims=1, dtype=jnp.int32)
    assert mask.shape == (1, 2, 3, 1, 4, 4) and mask.dtype == jnp.int32
    np.testing.assert_array_equal(mask, np.broadcast_to(np.tri(4), mask.shape))


def test_decoder_mask_is_the_symbolic_one():
    prefix, segments = jnp.array([[1, 0, 1, 0], [1, 1, 0, 0]]), jnp.array([[1, 1, 2, 0], [1, 0, 0, 0]])
    real = Padding(TOKENS > 0, TOKENS > 0)
    cases = [
        ({}, Causal() & real),
        ({"decoder_causal_attention": prefix}, prefix_lm(prefix > 0, prefix > 0) & real),
        ({"decoder_segment_ids": segments}, Causal() & real & Segments(segments, segments)),
        (
            {"decoder_causal_attention": prefix, "decoder_segment_ids": segments},
            prefix_lm(prefix > 0, prefix > 0) & real & Segments(segments, segments),
        ),
    ]
    for options, expected in cases:
        mask = mask_arrays.make_decoder_mask(TOKENS, jnp.float32, **options)
        assert mask.dtype == jnp.float32
        np.testing.assert_array_equal(mask > 0, expected.dense(4, 4))


def test_combining_masks_is_a_conjunction_and_combining_biases_a_sum():
    first, second = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([[1.0], [0.0]])
    np.testing.assert_array_equal(mask_arrays.combine_masks(first, None, second), [[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(mask_arrays.combine_masks(None, first), first)
    assert mask_arrays.combine_masks(first, dtype=jnp.int32).dtype == jnp.int32
    np.testing.assert_array_equal(mask_arrays.combine_biases(first, None, second), first + second)
    assert mask_arrays.combine_masks(None) is None and mask_arrays.combine_biases(None, None) is None


@pytest.mark.parametrize("combine", [mask_arrays.combine_masks, mask_arrays.combine_biases])
@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_combining_different_ranks_is_refused(combine, error):
    with pytest.raises(error, match=r"shapes \(2, 3\), \(2, 3, 3\) .* expected equal ranks"):
        combine(jnp.ones((2, 3)), jnp.ones((2, 3, 3)))


def test_shift_left_drops_the_first_and_appends_zero():
    np.testing.assert_array_equal(mask_arrays.shift_left(TOKENS), [[4, 5, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask_arrays.shift_left(TOKENS, axis=0), [[6, 0, 0, 0], [0, 0, 0, 0]])
    assert mask_arrays.shift_left(jnp.ones((2, 0))).shape == (2, 0)


def test_decoder_logit_mask_keeps_starts_of_sequences():
    tokens = jnp.array([[0, 3, 4, 0, 5, 0], [0, 0, 0, 0, 0, 0]])
    mask = mask_arrays.get_decoder_logit_mask(tokens, jnp.bfloat16)
    assert mask.shape == (2, 6, 1) and mask.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mask[..., 0], [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]])


def ones(*shape):
    return np.ones(shape)


@pytest.mark.parametrize(
    "call",
    [
        (ones(2, 6, 8), ones(2, 5, 7), ones(2, 1, 6, 5), ones(1, 4, 6, 5)),
        (ones(2, 6, 8), ones(2, 5, 7), ones(2, 4, 1, 5), None),
        (ones(3, 2, 6, 8), ones(3, 2, 5, 8), ones(3, 2, 1, 6, 5), ones(1, 1, 4, 6, 5)),
        (ones(2, 1, 8), ones(2, 1, 8), ones(2, 1, 1, 1), ones(1, 4, 9, 9)),  # one decoded token
    ],
)
def test_fitting_shapes_are_accepted(call):
    assert mask_arrays.validate_dense_attention_call_parameter_shapes(*call, num_heads=4) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((ones(2, 6, 8), ones(6, 8), None, None), "expected equal ranks"),
        ((ones(6, 8), ones(6, 8), None, None), "Add a batch axis"),
        ((ones(2, 6, 8), ones(2, 0, 8), None, None), "expected at least one query and one key"),
        ((ones(3, 2, 6, 8), ones(2, 2, 6, 8), None, None), "expected equal outer batch axes"),
        ((ones(2, 6, 8), ones(2, 5, 8), ones(2, 6, 5), None), "mask has shape .* expected rank 4"),
        ((ones(2, 6, 8), ones(2, 5, 8), ones(2, 3, 6, 5), None), r"mask .* N in \[1, 4\]"),
        ((ones(2, 6, 8), ones(2, 5, 8), ones(2, 1, 3, 5), None), r"mask .* T in \[1, 6\]"),
        ((ones(2, 6, 8), ones(2, 5, 8), ones(2, 1, 6, 1), None), r"mask .* S in \[5\]"),
        ((ones(2, 6, 8), ones(2, 5, 8), None, ones(4, 6, 5)), "bias has shape .* expected rank 4"),
        ((ones(2, 6, 8), ones(2, 5, 8), None, ones(1, 2, 6, 5)), r"bias .* N in \[1, 4\]"),
        ((ones(2, 6, 8), ones(2, 5, 8), None, ones(1, 4, 1, 5)), r"bias .* T in \[6\]"),
        ((ones(2, 6, 8), ones(2, 5, 8), None, ones(1, 4, 6, 1)), r"bias .* S in \[5\]"),
    ],
)
def test_other_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        mask_arrays.validate_dense_attention_call_parameter_shapes(*call, num_heads=4)


def test_without_a_number_of_heads_the_mask_says_it():
    call = (ones(2, 6, 8), ones(2, 5, 8), ones(2, 3, 6, 5))
    mask_arrays.validate_dense_attention_call_parameter_shapes(*call, ones(1, 3, 6, 5), num_heads=None)
    with pytest.raises(ValueError, match=r"N in \[1, 3\]"):
        mask_arrays.validate_dense_attention_call_parameter_shapes(*call, ones(1, 4, 6, 5), num_heads=None)
