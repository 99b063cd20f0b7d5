import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention.kernels.blind import attend_evenly_when_blind
from flaxformer.components.attention.kernels.reference import attend_reference
from tests.components.attention.kernels import cases


def test_blind_rows_attend_evenly_and_others_stay():
    query, key, value = cases.inputs()
    seen = np.arange(cases.S) < np.array([0, 4])[:, None, None, None]
    output, total = attend_reference(query, key, value, mask=seen, return_residuals=True)
    even = attend_evenly_when_blind(output, total, value)
    additive = attend_reference(query, key, value, bias=jnp.where(seen, 0, -1e10))
    np.testing.assert_allclose(even, additive, atol=1e-6)
    np.testing.assert_array_equal(output[0], 0)
