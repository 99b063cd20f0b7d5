"""A convolution is its sum, written out; groups do not mix; the length of a normed kernel is its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.strided_convolution import StridedConvolution, WeightNormedConvolution

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 9, 4)).astype(np.float32)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, (0, 0), 1), (2, (1, 1), 2), (3, (0, 2), 4)])
def test_every_output_is_the_sum_over_its_window(stride, padding, groups):
    module = StridedConvolution(8, 3, stride, padding, groups)
    made, variables = module.init_with_output(jax.random.key(0), X)
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(X, ((0, 0), padding, (0, 0)))
    each, outputs = 4 // groups, 8 // groups
    expected = np.zeros(made.shape)
    for u in range(made.shape[1]):
        window = padded[:, stride * u : stride * u + 3]
        for group in range(groups):
            mine = slice(group * outputs, (group + 1) * outputs)
            inputs = window[..., group * each : (group + 1) * each]
            expected[:, u, mine] = np.einsum("bkc,kcd->bd", inputs, kernel[..., mine])
    assert made.shape[1] == (9 + sum(padding) - 3) // stride + 1
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_every_offset_of_a_normed_kernel_is_as_long_as_its_scale():
    module = WeightNormedConvolution(4, 2, use_bias=False)
    params = module.init(jax.random.key(0), X)["params"]
    larger = {**params, "kernel": params["kernel"] * 3}
    np.testing.assert_allclose(module.apply({"params": larger}, X), module.apply({"params": params}, X), rtol=1e-5)
    scaled = {**params, "scale": jnp.array([0.0, 2.0])}
    norm = jnp.linalg.norm(params["kernel"][1])
    expected = X[:, 1:] @ (params["kernel"][1] * 2 / norm)
    np.testing.assert_allclose(module.apply({"params": scaled}, X), expected, atol=1e-5)


def test_sequences_and_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(2, 9, 4\); expected at least 10 positions"):
        StridedConvolution(8, 12, padding=(1, 1)).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"4 and 8 channels to be multiples of 3 groups"):
        StridedConvolution(8, 2, groups=3).init(jax.random.key(0), X)
