import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from jax.sharding import PartitionSpec

from flaxformer.components import transforms

X = jnp.arange(6.0).reshape(2, 3)


class Scale(nn.Module):
    """`x * scale` when enabled, as a scan body."""

    factor: float = 2.0

    @nn.compact
    def __call__(self, x, bias=None, *, enable=False):
        scale = partitioning.param_with_axes("scale", nn.initializers.ones, (3,), jnp.float32, axes=("embed",))
        return (x * scale * self.factor if enable else x * scale), None


class Parent(nn.Module):
    factory: object

    @nn.compact
    def __call__(self, x):
        return self.factory()(x, enable=True)[0]


def test_canonical_arguments_reproduce_the_call():
    def function(a, b=2, *rest, c, d=4, **others):
        return a, b, rest, c, d, others

    positional, to_args = transforms.canonicalize_arguments(function)
    for args, kwargs in [((1,), {"c": 3}), ((1, 5, 6, 7), {"c": 3, "e": 8}), ((), {"a": 1, "c": 3, "d": 0})]:
        assert positional(*to_args(*args, **kwargs)) == function(*args, **kwargs)


def test_canonical_functions_refuse_a_wrong_count():
    positional, _ = transforms.canonicalize_arguments(lambda a, *, b=1: a + b)
    with pytest.raises(ValueError, match=r"1 arguments came for \['a', 'b'\]; expected 2"):
        positional(1)


def test_rematerialised_modules_keep_tree_numbers_and_gradients():
    factory = transforms.factory_remat(lambda: Scale(factor=3.0, name="layer"), static_argnums=(2,))
    plain, remat = Parent(lambda: Scale(factor=3.0, name="layer")), Parent(factory)
    variables = plain.init(jax.random.key(0), X)
    assert jax.tree.structure(remat.init(jax.random.key(0), X)) == jax.tree.structure(variables)

    def loss(module):
        return jax.value_and_grad(lambda v: module.apply(v, X).sum())({"params": variables["params"]})

    for got, expected in zip(jax.tree.leaves(loss(remat)), jax.tree.leaves(loss(plain)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert "remat" in str(jax.make_jaxpr(lambda v: remat.apply(v, X))(variables))


def test_transformed_classes_are_named_after_both():
    clz = transforms.canonicalized_class_transform(partitioning.remat, Scale)
    assert clz.__name__ == "RematScale"
    assert issubclass(clz, Scale)


def test_scanned_factories_stack_parameters_and_name_the_axis():
    factory = transforms.factory_scan(
        lambda: Scale(factor=2.0, name="layers"),
        variable_axes={"params": 1},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=4,
    )
    y, variables = Parent(factory).init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y, X * 2.0**4)
    assert variables["params"]["layers"]["scale"].shape == (3, 4)
    assert variables["params_axes"]["layers"]["scale_axes"].names == ("embed", "layers")


def test_vmapped_factories_have_parameters_for_each():
    factory = transforms.factory_vmap(
        lambda: nn.Dense(4), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, out_axes=0
    )
    module = factory()
    y, variables = module.init_with_output(jax.random.key(0), X)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (2, 3, 4)
    np.testing.assert_allclose(y, jnp.einsum("bi,bio->bo", X, kernel), rtol=1e-6)


def test_constraints_are_nothing_without_a_mesh():
    assert not transforms.global_mesh_defined()
    assert transforms.with_sharding_constraint(X, PartitionSpec("data")) is X


def test_a_mesh_is_seen():
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert transforms.global_mesh_defined()


def test_constraints_are_applied_on_an_accelerator_with_a_mesh(monkeypatch):
    monkeypatch.setattr(transforms.jax, "default_backend", lambda: "gpu")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        y = transforms.with_sharding_constraint(jnp.arange(8), PartitionSpec("data"))
    assert y.sharding.spec == PartitionSpec("data")


def test_no_annotations_need_no_transform():
    assert transforms.inner_scan_spmd(None, 1) is None


def test_annotations_reach_the_parameters_without_the_scan_axis(monkeypatch):
    seen = []
    monkeypatch.setattr(transforms, "with_sharding_constraint", lambda x, spec: seen.append((x, spec)) or x)
    annotate = transforms.inner_scan_spmd({"w": PartitionSpec("data", None, "model")}, 1)
    groups, rngs = ({}, ({"params": {"w": 1}},), {"cache": {"k": 2}}), ({"dropout": 3},)
    assert annotate(groups, rngs) == (groups, rngs)
    assert seen == [(1, PartitionSpec("data", "model"))]
