import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.masks import Causal
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.positions.shaw import ShawKeys
from tests.contracts import models

B, T, LIMIT = 2, 6, 2
X = jax.random.normal(jax.random.key(0), (B, T, models.WIDTH))
NORMAL = jax.nn.initializers.normal(1.0)


@pytest.mark.parametrize(
    ("bidirectional", "num_heads", "options"),
    [
        (True, None, {}),
        (False, models.HEADS, {"rescale_logits": True}),
        (True, models.HEADS, {"attention_fn": Attend(scale=0.3)}),
    ],
)
def test_a_query_is_compared_with_the_vector_of_the_distance(bidirectional, num_heads, options):
    keys = ShawKeys(LIMIT, bidirectional, num_heads, embedding_init=NORMAL)
    layer = models.attention(positions=keys, **options)
    variables = jax.jit(layer.init)(jax.random.key(0), X, X)
    assert variables["params_axes"]["positions"]["relative_keys_axes"].names[-1] == "kv"
    apply = jax.jit(lambda params: layer.apply({"params": params}, X, X, mutable=["attention"]))
    _, captured = apply(variables["params"])
    query, key = (
        np.asarray(X @ variables["params"][name]["kernel"]).reshape(B, T, models.HEADS, models.HEAD_DIM)
        for name in ("query", "key")
    )
    table = np.asarray(variables["params"]["positions"]["relative_keys"])
    table = np.broadcast_to(table if num_heads else table[:, None], (len(table), models.HEADS, models.HEAD_DIM))
    scores = np.zeros((B, models.HEADS, T, T))
    for b, n, t, s in np.ndindex(scores.shape):
        vector = table[np.clip(s - t, -LIMIT, LIMIT if bidirectional else 0) + LIMIT, n]
        scores[b, n, t, s] = np.dot(query[b, t, n], key[b, s, n] + vector)
    scale = 0.3 if "attention_fn" in options else models.HEAD_DIM**-0.5 if "rescale_logits" in options else 1.0
    expected = jax.nn.softmax(jnp.asarray(scores) * scale)
    np.testing.assert_allclose(captured["attention"]["weights"][0], expected, atol=1e-5)


def test_the_blockwise_kernel_never_builds_the_square():
    length = 512
    x = jax.ShapeDtypeStruct((1, length, models.WIDTH), jnp.float32)
    keys = ShawKeys(LIMIT, num_heads=models.HEADS)
    layer = models.attention(positions=keys, attention_fn=Attend(implementation="blockwise"))
    variables = jax.eval_shape(layer.init, jax.random.key(0), x, x)
    jaxpr = jax.make_jaxpr(lambda v, x: layer.apply(v, x, x, Causal()))(variables, x)
    assert f"{length},{length}]" not in str(jaxpr)
