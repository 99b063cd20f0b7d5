"""Patches are cut as published models cut them, and images of another size are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.vision import PatchEmbed

IMAGES = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)


def test_a_patch_is_its_pixels_row_by_row_behind_the_first_token():
    module = PatchEmbed(5, (2, 3), (2, 2))
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), IMAGES)["params"])
    kernel = jnp.eye(18, 5)  # the first pixel, and two numbers of the second
    params |= {"patches": {"kernel": kernel, "bias": jnp.zeros(5)}, "first": jnp.ones(5)}
    x = module.apply({"params": params}, IMAGES)
    assert x.shape == (2, module.length, 5) and (x[:, 0] == 1).all()
    np.testing.assert_array_equal(x[0, 1], IMAGES[0, 0, :2].reshape(-1)[:5])
    np.testing.assert_array_equal(x[0, 2], IMAGES[0, 0, 3:5].reshape(-1)[:5])
    np.testing.assert_array_equal(x[0, 3], IMAGES[0, 2, :2].reshape(-1)[:5])


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"images have shape \(2, 4, 6, 3\); expected \[batch, 4, 4, 3\]"):
        PatchEmbed(5, (2, 2), (2, 2)).init(jax.random.key(0), IMAGES)
