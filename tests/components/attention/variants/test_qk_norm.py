"""Unit norms make logits cosines."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention.variants import UnitNorm
from flaxformer.components.attention.variants.qk_norm import cosine_scale
from tests.components.attention.variants.test_contract import ROW, qkv
from tests.contracts import models


def test_length_is_one_or_the_learned_scale():
    x = qkv()[0]
    norm = UnitNorm(scale=5.0)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), 5.0, rtol=1e-5)
    np.testing.assert_allclose(UnitNorm().apply({}, x) * 5, y, atol=1e-6)
    assert variables["params"]["scale"].shape == ()
    assert not np.any(UnitNorm().apply({}, jnp.zeros((1, 4))))


def test_logits_are_cosines_times_the_scale():
    layer = models.attention(q_norm=UnitNorm(scale=cosine_scale(7)), k_norm=UnitNorm())
    params = layer.init(jax.random.key(0), ROW, ROW)["params"]
    _, captured = layer.apply({"params": params}, ROW, ROW, mutable=["attention"])
    query, key = ((ROW @ params[name]["kernel"]).reshape(*ROW.shape[:2], 4, 4) for name in ("query", "key"))
    lengths = jnp.linalg.norm(query, axis=-1)[:, :, None], jnp.linalg.norm(key, axis=-1)[:, None]
    cosines = jnp.einsum("btnh,bsnh->btsn", query, key) / lengths[0] / lengths[1]
    expected = jax.nn.softmax(np.log2(42) * cosines, axis=2)
    np.testing.assert_allclose(captured["attention"]["weights"][0], jnp.moveaxis(expected, 3, 1), atol=1e-5)
