"""Every position scheme and every reach in an attention layer: cached as uncached, in half precision, with gradients.

All of them run in one compiled program, side by side.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.masks import Causal, Window
from flaxformer.components.attention.reach import Blocks, Dilated, Global, RandomBlocks
from flaxformer.components.attention.variants.attend import Attend
from flaxformer.components.positions.alibi import Alibi
from flaxformer.components.positions.relative import RelativeBias
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.rotary_scaling import LinearScaling, Llama3Scaling, NtkScaling, YarnScaling
from flaxformer.components.positions.scheme import PositionScheme
from flaxformer.components.positions.shaw import ShawKeys
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

SCHEMES = {
    "none": PositionScheme(),
    "linear": Rotary(scaling=LinearScaling(4.0)),
    "ntk": Rotary(scaling=NtkScaling(4.0), interleaved=True),
    "yarn": Rotary(scaling=YarnScaling(4.0, 8)),
    "llama3": Rotary(100.0, scaling=Llama3Scaling(4.0, original_length=8)),
    "alibi": Alibi(models.HEADS),
    "relative": RelativeBias(models.HEADS, 8, 5, bidirectional=False),
    "shaw": ShawKeys(3),
    "music": ShawKeys(2, bidirectional=False, num_heads=models.HEADS),
}
REACH = {
    "window": Window(left=2),
    "dilated": Dilated(2),
    "blocks": Blocks(3),
    "global": Window(left=1) | Global(((0, 1),)),
    "random": Window(left=0) | RandomBlocks(2, 4, count=1),
}
LAYERS = {name: models.attention(positions=scheme) for name, scheme in SCHEMES.items()}
LAYERS |= {
    f"lazy {name}": models.attention(positions=SCHEMES[name], attention_fn=Attend()) for name in ("alibi", "shaw")
}
LAYERS |= {name: models.attention(reach=mask) for name, mask in REACH.items()}
X = np.random.default_rng(0).normal(size=(ROWS, TOTAL, models.WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def parameters():
    rng = np.random.default_rng(1)

    def draw(shape):
        return rng.normal(size=shape.shape, scale=0.4).astype(np.float32)

    shapes = {name: jax.eval_shape(layer.init, jax.random.key(0), X, X)["params"] for name, layer in LAYERS.items()}
    drawn = {name: jax.tree.map(draw, tree) for name, tree in shapes.items()}
    heads = {name: drawn["none"][name] for name in ("query", "key", "value", "out")}  # the same for all layers
    tables = {name: drawn[name.removeprefix("lazy ")] for name in LAYERS}
    return {name: {**table, **heads} for name, table in tables.items()}


def apply_all(parameters, x, step=None, collections=None, dtype="float32"):
    """The outputs of all layers side by side, and their caches."""
    outputs, caches = [], {}
    for name, layer in LAYERS.items():
        variables = {"params": parameters[name], **(collections or {}).get(name, {})}
        mutable = False if step is None else ["cache"]
        y = layer.clone(dtype=dtype).apply(variables, x, x, Causal(), step=step, mutable=mutable)
        y, caches[name] = (y, {}) if step is None else y
        outputs.append(y)
    return jnp.stack(outputs, axis=2), caches  # [R T layers D]


@pytest.fixture(scope="module")
def expected(parameters):
    return np.asarray(jax.jit(apply_all)(parameters, X)[0])


@pytest.fixture(scope="module")
def apply_cached(parameters):
    return jax.jit(lambda x, step, collections: apply_all(parameters, x, step, collections))


@pytest.mark.parametrize(("side", "chunks"), [("left", (2, 1)), ("right", (1, 1, 1))])
def test_cached_equals_uncached(side, chunks, apply_cached, expected):
    for b, output in enumerate(run_cached(apply_cached, X, side, chunks)):
        for i, name in enumerate(LAYERS):
            difference = np.abs(output[:, i] - expected[b, : len(output), i]).max()
            assert difference < 2e-5, (name, difference)


def test_every_scheme_and_every_reach_makes_a_difference(expected):
    plain = expected[:, :, list(LAYERS).index("none")]
    for i, name in enumerate(LAYERS):
        if name != "none":
            assert np.abs(expected[:, :, i] - plain).max() > 1e-3, name


def test_lazy_biases_change_nothing(expected):
    names = list(LAYERS)
    for name in ("alibi", "shaw"):
        lazy, dense = (expected[:, :, names.index(n)] for n in (f"lazy {name}", name))
        np.testing.assert_allclose(lazy, dense, atol=1e-5)


def test_gradients_are_finite_in_half_precision(parameters):
    def loss(parameters):
        y, _ = apply_all(parameters, jnp.asarray(X, "bfloat16"), dtype="bfloat16")
        assert y.dtype == jnp.bfloat16
        return (y.astype(jnp.float32) ** 2).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(parameters)):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0, path
