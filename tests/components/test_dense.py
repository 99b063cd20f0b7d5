import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning as flax_partitioning

from flaxformer.components.dense import DenseGeneral

X = jax.random.normal(jax.random.key(0), (2, 3, 4))


def init(module, x=X):
    variables = module.init(jax.random.key(1), x)
    return variables["params"], {k: v.names for k, v in variables["params_axes"].items()}


@pytest.mark.parametrize("reshape_kernel", [True, False])
def test_stored_shape_changes_nothing_but_the_parameter(reshape_kernel):
    module = DenseGeneral(features=(2, 5), use_bias=True, reshape_kernel=reshape_kernel)
    kernel, bias = jnp.arange(40.0).reshape(4, 10) / 40, jnp.arange(10.0)
    params = {"kernel": kernel if reshape_kernel else kernel.reshape(4, 2, 5), "bias": bias}
    y = module.apply({"params": params}, X)
    np.testing.assert_allclose(y, (X @ kernel + bias).reshape(2, 3, 2, 5), rtol=1e-6)


def test_axes_are_contracted_in_the_order_listed():
    kernel = jax.random.normal(jax.random.key(2), (12, 5))
    y = DenseGeneral(features=5, use_bias=False, axis=(2, 1)).apply({"params": {"kernel": kernel}}, X)
    np.testing.assert_allclose(y, np.einsum("btd,dtf->bf", X, kernel.reshape(4, 3, 5)), rtol=1e-5)


def test_bias_follows_the_new_axes_when_an_inner_axis_is_contracted():
    params = {"kernel": jnp.zeros((3, 5)), "bias": jnp.arange(5.0)}
    y = DenseGeneral(features=5, use_bias=True, axis=1).apply({"params": params}, X)
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(5.0), (2, 4, 5)))


@pytest.mark.parametrize(
    ("names", "features", "axis", "reshape", "kernel_axes", "bias_axes"),
    [
        (None, 6, -1, True, ("unmodeled", "unmodeled"), ("unmodeled",)),
        (None, (2, 3), -1, False, ("unmodeled",) * 3, ("unmodeled",)),
        (("embed", "heads", "kv"), (2, 3), -1, True, ("embed", "joined_kv"), ("joined_kv",)),
        (("embed", "heads", "kv"), (2, 3), -1, False, ("embed", "heads", "kv"), ("kv",)),
        (("a", "b", "c"), (2, 3), -1, True, ("a", "b * c"), ("b * c",)),
        (("heads", "kv", "embed"), 6, (-2, -1), True, ("joined_kv", "embed"), ("embed",)),
    ],
)
def test_logical_axes_name_what_is_stored(names, features, axis, reshape, kernel_axes, bias_axes):
    module = DenseGeneral(features=features, use_bias=True, axis=axis, kernel_axis_names=names, reshape_kernel=reshape)
    params, axes = init(module)
    assert axes == {"kernel_axes": kernel_axes, "bias_axes": bias_axes}
    assert params["kernel"].ndim == len(kernel_axes)
    assert params["bias"].shape == (6,)


def test_joined_axes_can_be_renamed():
    module = DenseGeneral(
        features=(2, 3),
        use_bias=False,
        kernel_axis_names=("embed", "heads", "kv"),
        reshaped_kernel_axis_name_map={"heads * kv": "all_heads"},
    )
    assert init(module)[1] == {"kernel_axes": ("embed", "all_heads")}


def test_initializers_see_the_stored_shape():
    seen = []

    def record(key, shape, dtype):
        seen.append((shape, dtype))
        return jnp.zeros(shape, dtype)

    init(DenseGeneral(features=(2, 3), use_bias=True, kernel_init=record, bias_init=record, dtype="bfloat16"))
    assert seen == [((4, 6), jnp.float32), ((6,), jnp.float32)]


def test_dtype_is_of_the_computation_only():
    module = DenseGeneral(features=3, use_bias=True, dtype="bfloat16")
    y, variables = module.init_with_output(jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_precision_reaches_the_contraction():
    module = DenseGeneral(features=3, use_bias=False, precision="highest")
    assert "HIGHEST" in str(jax.make_jaxpr(lambda v: module.apply(v, X))(module.init(jax.random.key(0), X)))


@pytest.mark.parametrize(("features", "axis"), [(6, -1), ((2, 3), -1), (5, (-2, -1))])
def test_forward_is_one_contraction_and_free_reshapes(features, axis):
    module = DenseGeneral(features=features, use_bias=False, axis=axis)
    params, _ = init(module)
    jaxpr = jax.make_jaxpr(lambda p: module.apply({"params": p}, X))(params)
    primitives = [equation.primitive.name for equation in jaxpr.eqns]
    assert primitives.count("dot_general") == 1
    assert set(primitives) <= {"dot_general", "reshape"}


def test_sharded_equals_unsharded():
    module = DenseGeneral(features=(4, 2), use_bias=True, kernel_axis_names=("embed", "heads", "kv"))
    variables = module.init(jax.random.key(0), X)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), flax_partitioning.axis_rules([("embed", None), ("joined_kv", "model")]):
        y = jax.jit(module.apply)(variables, X)
    assert "model" in y.sharding.spec
    np.testing.assert_allclose(y, module.apply(variables, X), atol=1e-6)


def test_wrong_number_of_axis_names_is_refused():
    module = DenseGeneral(features=(2, 3), use_bias=False, kernel_axis_names=("embed", "joined_kv"))
    with pytest.raises(ValueError, match=r"expected 3 names: 1 for the contracted axes, then 2 for the features"):
        module.init(jax.random.key(0), X)


@pytest.mark.parametrize("axis", [3, -4, (-1, 2)])
def test_axes_must_exist_and_differ(axis):
    with pytest.raises(ValueError, match="rank 3; expected distinct axes between -3 and 2"):
        DenseGeneral(features=2, use_bias=False, axis=axis).init(jax.random.key(0), X)
