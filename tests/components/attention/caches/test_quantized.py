"""int8 keys and values stay within half a scale of what they were."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flaxformer.components.attention.caches import QuantizedCache
from flaxformer.components.attention.caches.quantized import dequantize, quantize
from flaxformer.step import Step
from tests.contracts import models


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (2, 5, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_no_entry_is_off_by_more_than_half_a_scale(x):
    integers, scale = quantize(jnp.asarray(x))
    assert integers.dtype == jnp.int8 and scale.shape == (2, 3)
    error = np.abs(np.asarray(dequantize(integers, scale)) - x)
    largest = np.abs(x).max(axis=-2, keepdims=True)
    assert np.all(error <= largest / 254 * (1 + 1e-4) + 1e-30)


def test_a_head_of_sixty_four_takes_sixty_eight_bytes():
    layer = models.attention(cache=QuantizedCache(), head_dim=64)
    x = np.ones((1, 2, models.WIDTH), np.float32)
    params = layer.init(jax.random.key(0), x, x)["params"]
    step = Step.start(jnp.ones((1, 2), bool), 10)
    _, changed = layer.apply({"params": params}, x, x, step=step, mutable=["cache"])
    per_head = sum(leaf.nbytes for leaf in jax.tree.leaves(changed["cache"])) / (10 * models.HEADS)
    assert per_head == 2 * 68
