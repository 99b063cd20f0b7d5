import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.kernels.biases import TableBias
from flaxformer.components.positions.relative import RelativeBias
from flaxformer.components.relative_position_biases import RelativePositionBiases


@pytest.mark.parametrize("bidirectional", [True, False])
def test_it_is_the_shared_bias_but_lazy(bidirectional):
    queries, keys = jnp.array([[4, 5, 9]]), jnp.arange(12)[None]
    options = {"num_heads": 3, "num_buckets": 8, "max_distance": 6}
    scheme = RelativeBias(**options, bidirectional=bidirectional)
    bias, variables = scheme.init_with_output(jax.random.key(0), queries, keys, method="bias")
    assert isinstance(bias, TableBias)
    shared = RelativePositionBiases(**options, dtype="float32")
    expected = shared.apply(variables, queries, keys, bidirectional, method="bias")
    np.testing.assert_array_equal(bias.dense(3, 12), expected)
    shared_variables = shared.init(jax.random.key(0), 3, 3)
    jax.tree.map(np.testing.assert_array_equal, variables, shared_variables)
