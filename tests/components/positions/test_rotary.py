import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.positions.rotary import (
    Rotary,
    apply_rotary_embedding,
    generate_fixed_pos_embedding,
    rotary_frequencies,
    rotate,
    rotate_half,
)

B, T, S, N, H = 2, 5, 7, 3, 8
Q = jax.random.normal(jax.random.key(0), (B, T, N, H))
K = jax.random.normal(jax.random.key(1), (B, S, N, H))


def test_agrees_with_the_tables_to_float32_rounding():
    sin, cos = generate_fixed_pos_embedding(H, S, max_timescale=50.0)
    q, k = apply_rotary_embedding(Q, K, cos, sin)
    scheme = Rotary(max_timescale=50.0)
    np.testing.assert_allclose(scheme.rotate(Q, jnp.arange(T)[None]), q, atol=1e-6)
    np.testing.assert_allclose(scheme.rotate(K, jnp.arange(S)[None]), k, atol=1e-6)


def test_decoding_reads_the_row_of_each_index():
    sin, cos = generate_fixed_pos_embedding(H, S)
    index = jnp.array([6, 2])
    q, _ = apply_rotary_embedding(Q[:, :1], K, cos, sin, decode=True, rotary_index=index)
    np.testing.assert_allclose(q, Rotary().rotate(Q[:, :1], index[:, None]), atol=1e-6)


def test_keys_without_heads_keep_their_rank():
    sin, cos = generate_fixed_pos_embedding(H, S)
    _, k = apply_rotary_embedding(Q, K[:, :, 0], cos, sin)
    np.testing.assert_allclose(k, Rotary().rotate(K, jnp.arange(S)[None])[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("scheme", [Rotary(), Rotary(interleaved=True), Rotary(fraction=0.5), Rotary(100.0, 2.0)])
def test_scores_depend_on_the_distance_only(scheme):
    def scores(shift):
        q, k = scheme.rotate(Q, shift + jnp.arange(T)[None]), scheme.rotate(K, shift + jnp.arange(S)[None])
        return jnp.einsum("btnh,bsnh->bnts", q, k)

    np.testing.assert_allclose(scores(0), scores(11), atol=2e-5)
    assert not np.allclose(scores(0), jnp.einsum("btnh,bsnh->bnts", Q, K))


def test_interleaved_is_halves_with_the_features_reordered():
    halves_to_pairs = np.arange(H).reshape(2, H // 2).T.ravel()
    positions = jnp.arange(T)[None]
    halves = Rotary().rotate(Q, positions)
    pairs = Rotary(interleaved=True).rotate(Q[..., halves_to_pairs], positions)
    np.testing.assert_array_equal(pairs, halves[..., halves_to_pairs])


def test_a_fraction_turns_the_leading_features_as_if_alone():
    positions = jnp.arange(T)[None]
    y = Rotary(fraction=0.5).rotate(Q, positions)
    np.testing.assert_array_equal(y[..., : H // 2], Rotary().rotate(Q[..., : H // 2], positions))
    np.testing.assert_array_equal(y[..., H // 2 :], Q[..., H // 2 :])


def test_positions_may_differ_per_row_and_restart():
    positions = jnp.array([[0, 1, 2, 0, 1], [7, 8, 9, 10, 11]])
    y = Rotary().rotate(Q, positions)
    for row in range(B):
        np.testing.assert_array_equal(y[row], Rotary().rotate(Q[row : row + 1], positions[row : row + 1])[0])
    np.testing.assert_array_equal(y[0, 3:], Rotary().rotate(Q[:1, 3:], jnp.arange(2)[None])[0])


def test_shape_and_type_stay_and_the_arithmetic_is_float32():
    x = Q.astype(jnp.bfloat16)
    y = Rotary().rotate(x, jnp.full((1, T), 4000))
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape
    exact = Rotary().rotate(x.astype(jnp.float32), jnp.full((1, T), 4000))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_further_batch_axes_are_allowed():
    x = Q[None]
    np.testing.assert_array_equal(rotate(x, jnp.arange(T)[None]), rotate(Q, jnp.arange(T)[None])[None])


def test_nothing_rotates_with_fraction_zero():
    np.testing.assert_array_equal(Rotary(fraction=0.0).rotate(Q, jnp.arange(T)[None]), Q)


def test_rotate_half_is_a_quarter_turn():
    np.testing.assert_array_equal(rotate_half(rotate_half(Q)), -Q)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rotary_frequencies(7),
        lambda: generate_fixed_pos_embedding(7, 3),
        lambda: Rotary().rotate(Q[..., :7], jnp.arange(T)[None]),
        lambda: Rotary(fraction=0.7).rotate(Q, jnp.arange(T)[None]),
    ],
)
def test_odd_sizes_are_refused(call):
    with pytest.raises(ValueError, match=r"turn pairs of features, and \d is odd; expected an even number"):
        call()


@pytest.mark.parametrize("fraction", [1.5, -0.5])
def test_fractions_outside_a_head_are_refused(fraction):
    with pytest.raises(ValueError, match=r"features of a head are to rotate; expected between 0 and its size 8"):
        Rotary(fraction=fraction).rotate(Q, jnp.arange(T)[None])


@pytest.mark.parametrize("k", [K[:1], K[..., :6]])
def test_queries_and_keys_must_fit(k):
    sin, cos = generate_fixed_pos_embedding(H, S)
    with pytest.raises(ValueError, match="q has shape .* and k .*; expected the same batch"):
        apply_rotary_embedding(Q, k, cos, sin)
