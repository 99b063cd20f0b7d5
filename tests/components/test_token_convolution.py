import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.token_convolution import TokenConvolution

X = jax.random.normal(jax.random.key(0), (2, 5, 4))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_token_is_mixed_with_its_neighbours_within_its_group(groups):
    layer = TokenConvolution(6, size=3, groups=groups)
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(3, 4 // groups, 6)), "bias": rng.normal(size=6)}
    padded = np.pad(X, ((0, 0), (1, 1), (0, 0)))
    expected = []
    for x, kernel in zip(np.split(padded, groups, -1), np.split(params["kernel"], groups, -1), strict=True):
        expected.append(sum(x[:, o : o + 5] @ kernel[o] for o in range(3)))
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    expected = np.concatenate(expected, -1) + params["bias"]
    np.testing.assert_allclose(layer.apply({"params": given}, X), expected, atol=1e-5)


def test_an_even_size_is_refused():
    with pytest.raises(ValueError, match="got size=2; expected an odd number"):
        TokenConvolution(4, size=2).init(jax.random.key(0), X)
