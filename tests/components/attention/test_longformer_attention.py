import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.global_flags import BeforeSeparator, First
from flaxformer.components.attention.longformer_attention import LongformerAttention
from flaxformer.components.attention.masks import Padding
from flaxformer.components.attention.reach import GlobalTokens
from flaxformer.step import Step

X = jax.random.normal(jax.random.key(0), (2, 9, 16))
VALID = jnp.arange(9)[None] < jnp.array([[9], [6]])
FLAGS = jnp.zeros((2, 9), bool).at[0, 4].set(True).at[1, jnp.array([0, 2])].set(True)
LAYER = LongformerAttention(num_heads=2, window=1)


def randomised(layer):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X, X)["params"]
    return {"params": jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)}


def by_definition(params, x, flags, valid, window):
    """One row, token by token."""
    project = lambda part: (x @ params[part]["kernel"] + params[part]["bias"]).reshape(len(x), 2, -1)  # noqa: E731
    local, far = ([project(part + kind) for part in ("query", "key", "value")] for kind in ("", "_global"))
    rows = []
    for t in range(len(x)):
        query, key, value = far if flags[t] else local
        seen = [s for s in range(len(x)) if valid[s] and (flags[t] or flags[s] or abs(s - t) <= window)]
        scores = np.einsum("nh,snh->ns", query[t], key[seen]) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        rows.append(np.einsum("ns,snh->nh", weights / weights.sum(-1, keepdims=True), value[seen]).reshape(-1))
    return np.stack(rows) @ params["out"]["kernel"] + params["out"]["bias"]


def test_local_and_global_tokens_see_what_the_definition_says():
    variables = randomised(LAYER)
    mask = Padding(VALID, VALID) & GlobalTokens(FLAGS)
    ours = jax.jit(lambda: LAYER.apply(variables, X, X, mask, enable_dropout=False))()
    for row in range(2):
        expected = by_definition(variables["params"], np.asarray(X[row]), FLAGS[row], VALID[row], 1)
        np.testing.assert_allclose(ours[row][VALID[row]], expected[VALID[row]], atol=2e-4, rtol=1e-4)


def test_without_global_tokens_their_projections_are_not_used():
    variables = randomised(LAYER)
    mask = Padding(VALID, VALID)
    gradients = jax.jit(jax.grad(lambda v: LAYER.apply(v, X, X, mask, enable_dropout=False).sum()))(variables)["params"]
    for name, leaves in gradients.items():
        unused = all(not np.any(leaf) for leaf in jax.tree.leaves(leaves))
        assert unused == name.endswith("_global"), name


def test_other_positions_and_decoding_are_refused():
    for keys, step in ((X[:, 1:], None), (X, Step(decode=True))):
        with pytest.raises(ValueError, match="LongformerAttention got inputs_kv .* expected one shape"):
            LAYER.init(jax.random.key(0), X, keys, step=step)


def test_rules_flag_the_first_token_or_the_question():
    tokens = jnp.array([[5, 2, 6, 2], [5, 6, 7, 2]])
    assert First()(tokens).tolist() == [[True, False, False, False]] * 2
    assert BeforeSeparator(2)(tokens).tolist() == [[True, False, False, False], [True, True, True, False]]
