"""Sharded over eight devices, a model computes what it computes on one."""

import chex
import jax
import numpy as np
import pytest
from flax.linen import partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxformer.sharding import get_axis_names
from tests.contracts import models

RULES = [
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("kv", None),
    ("embed", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
]


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices; tests/conftest.py makes them on CPU")
@pytest.mark.parametrize("scan", [False, True])
def test_sharded_equals_unsharded(scan):
    model = models.encoder_decoder(scan=scan, layers=1)
    tokens = np.random.default_rng(0).integers(1, models.VOCABULARY, (4, 6))
    variables = model.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)

    def loss(params, tokens):
        logits = model.apply({"params": params}, tokens, tokens, tokens, enable_dropout=False)
        return jax.nn.log_softmax(logits)[..., 1].mean(), logits

    compute = jax.value_and_grad(loss, has_aux=True)
    (_, expected), gradients = jax.jit(compute)(variables["params"], tokens)

    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))
    names = get_axis_names(variables)
    sizes = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))

    def sharding(axes, leaf):
        spec = partitioning.logical_to_mesh_axes(axes, RULES)
        fits = [a if a is None or n % sizes[a] == 0 else None for a, n in zip(spec, leaf.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    is_names = lambda x: isinstance(x, tuple)  # noqa: E731
    shardings = jax.tree.map(sharding, names, dict(variables["params"]), is_leaf=is_names)
    params = jax.device_put(dict(variables["params"]), shardings)
    assert any(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(params))
    with jax.set_mesh(mesh), partitioning.axis_rules(RULES):
        sharded_tokens = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
        (_, logits), sharded_gradients = jax.jit(compute)(params, sharded_tokens)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    chex.assert_trees_all_close(sharded_gradients, dict(gradients), atol=2e-6)
