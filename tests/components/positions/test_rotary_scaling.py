import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.positions.rotary import Rotary, rotary_frequencies
from flaxformer.components.positions.rotary_scaling import (
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    RotaryScaling,
    YarnScaling,
    yarn_magnitude,
)

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 16))
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 8, 30, 31, 32]])


def frequencies(width=16, base=100.0):
    return base ** (-np.arange(0, width, 2) / width)


def test_linear_scaling_divides_positions():
    scaled = Rotary(scaling=LinearScaling(4.0)).rotate(X, 4 * POSITIONS)
    np.testing.assert_allclose(scaled, Rotary().rotate(X, POSITIONS), atol=1e-6)


def test_ntk_scaling_is_a_larger_base():
    base, factor, width = 100.0, 8.0, 16
    scaled = NtkScaling(factor).scale(frequencies(width, base))
    np.testing.assert_allclose(scaled, frequencies(width, base * factor ** (width / (width - 2))), rtol=1e-12)
    np.testing.assert_allclose(scaled[[0, -1]] / frequencies(width, base)[[0, -1]], [1, 1 / factor], rtol=1e-12)
    np.testing.assert_array_equal(NtkScaling(factor).scale(np.ones(1)), np.ones(1))


def test_llama3_scaling_has_three_bands():
    original = frequencies()
    scaled = Llama3Scaling(factor=8.0, low_turns=1.0, high_turns=4.0, original_length=32).scale(original)
    expected = []
    for f in original:
        wavelength = 2 * math.pi / f
        if wavelength < 32 / 4:
            expected.append(f)
        elif wavelength > 32 / 1:
            expected.append(f / 8)
        else:
            t = (32 / wavelength - 1) / (4 - 1)
            expected.append((1 - t) * f / 8 + t * f)
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)
    slowed = original / scaled
    assert slowed[0] == 1 and slowed[-1] == 8 and ((slowed > 1) & (slowed < 8)).any()


def yarn_by_hand(width, base, factor, length, fast, slow, whole):
    """The rule in terms of the width and the base of the rotation."""
    bounds = [width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow)]
    low, high = (math.floor(bounds[0]), math.ceil(bounds[1])) if whole else bounds
    low, high = max(low, 0), min(high, width - 1)
    result = []
    for j, f in enumerate(frequencies(width, base)):
        ramp = min(max((j - low) / (high - low), 0.0), 1.0)
        result.append(f / factor * ramp + f * (1 - ramp))
    return result


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("width", "base", "length"), [(16, 100.0, 256), (64, 10000.0, 4096), (8, 1e6, 32)])
def test_yarn_blends_between_fast_and_slow_pairs(width, base, length, whole):
    scaling = YarnScaling(8.0, length, fast_turns=16.0, slow_turns=2.0, whole_pairs=whole)
    expected = yarn_by_hand(width, base, 8.0, length, 16.0, 2.0, whole)
    np.testing.assert_allclose(scaling.scale(frequencies(width, base)), expected, rtol=1e-9)


def test_yarn_of_equal_bounds_is_a_step():
    slowed = frequencies() / YarnScaling(4.0, 64, fast_turns=3.0, slow_turns=3.0, whole_pairs=False).scale(
        frequencies()
    )
    assert set(np.round(slowed, 6)) == {1.0, 4.0}


def test_yarn_sharpens_the_softmax():
    plain, sharp = (YarnScaling(16.0, 64, attention_factor=factor) for factor in (1.0, None))
    root = 0.1 * math.log(16.0) + 1
    assert sharp.magnitude == pytest.approx(root)
    rotated = Rotary(fraction=0.5, scaling=sharp).rotate(X, POSITIONS)
    expected = Rotary(fraction=0.5, scaling=plain).rotate(X, POSITIONS)
    np.testing.assert_allclose(rotated[..., :8], root * expected[..., :8], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rotated[..., 8:], X[..., 8:])
    assert yarn_magnitude(40.0, 0.707) / yarn_magnitude(40.0, 0.707) == 1.0


@pytest.mark.parametrize("scaling", [LinearScaling(4.0), NtkScaling(4.0), YarnScaling(4.0, 32), Llama3Scaling(4.0)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_scaled_scores_depend_on_the_distance_only(scaling, interleaved):
    scheme = Rotary(scaling=scaling, interleaved=interleaved)
    q, k = (scheme.rotate(X, shift + POSITIONS[:1]) for shift in (0, 3))
    moved_q, moved_k = (scheme.rotate(X, shift + POSITIONS[:1] + 9) for shift in (0, 3))
    scores, moved = (jnp.einsum("btnh,bsnh->bnts", *pair) for pair in ((q, k), (moved_q, moved_k)))
    np.testing.assert_allclose(scores, moved, atol=3e-5)
    assert scheme.rotate(X.astype("bfloat16"), POSITIONS).dtype == jnp.bfloat16
    hash(scheme)  # layers are static arguments


def test_no_scaling_is_the_base_class():
    np.testing.assert_array_equal(rotary_frequencies(8, scaling=RotaryScaling()), rotary_frequencies(8))
    assert RotaryScaling().magnitude == 1.0


def test_yarn_needs_two_pairs():
    with pytest.raises(ValueError, match="got 1 pair of features to rotate; expected at least 2"):
        rotary_frequencies(2, scaling=YarnScaling(4.0, 32))
