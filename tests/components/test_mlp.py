from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.linen import partitioning as flax_partitioning

from flaxformer.components.convolution import Depthwise1dConv
from flaxformer.components.dense import DenseGeneral, MlpBlock
from flaxformer.retired import RetiredError
from flaxformer.step import Step

X = jax.random.normal(jax.random.key(0), (2, 5, 4))


def make(**kwargs):
    return MlpBlock(**({"use_bias": False, "intermediate_dim": 6} | kwargs))


def init(module, x=X):
    return module.init(jax.random.key(1), x, enable_dropout=False)


def test_gated_block_multiplies_its_branches():
    module = make(activations=("gelu", "linear", jnp.tanh))
    params = init(module)["params"]
    a, b, c = (X @ params[f"wi_{i}"]["kernel"] for i in range(3))
    wanted = (nn.gelu(a) * b * jnp.tanh(c)) @ params["wo"]["kernel"]
    np.testing.assert_allclose(module.apply({"params": params}, X, enable_dropout=False), wanted, atol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
def test_fused_equals_unfused_with_its_kernels_stacked(use_bias):
    settings = {"activations": ("relu", "linear"), "use_bias": use_bias, "bias_init": nn.initializers.normal(1.0)}
    params = dict(init(make(**settings))["params"])
    branches = [params["wi_0"], params["wi_1"]]
    fused = {"kernel": jnp.stack([b["kernel"] for b in branches], axis=1)}
    if use_bias:
        fused["bias"] = jnp.concatenate([b["bias"] for b in branches])
    fused_params = {"wi_fused": fused, "wo": params["wo"]}
    y = make(**settings).apply({"params": params}, X, enable_dropout=False)
    z = make(fuse_kernels=True, **settings).apply({"params": fused_params}, X, enable_dropout=False)
    np.testing.assert_allclose(y, z, atol=1e-6)


def test_parameters_are_named_and_their_axes_too():
    module = make(
        activations=("relu", "linear"),
        fuse_kernels=True,
        use_bias=True,
        out_dim=3,
        input_axis_name="in",
        activations_axis_name="branch",
        intermediate_axis_name="hidden",
        output_axis_name="out",
    )
    variables = init(module)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "wi_fused": {"kernel": (4, 2, 6), "bias": (12,)},
        "wo": {"kernel": (6, 3), "bias": (3,)},
    }
    axes = {
        f"{part}/{leaf}": v.names for part, leaves in variables["params_axes"].items() for leaf, v in leaves.items()
    }
    assert axes == {
        "wi_fused/kernel_axes": ("in", "branch", "hidden"),
        "wi_fused/bias_axes": ("hidden",),
        "wo/kernel_axes": ("hidden", "out"),
        "wo/bias_axes": ("out",),
    }


def test_fused_kernel_may_have_its_own_initializer():
    ones, twos = nn.initializers.constant(1.0), nn.initializers.constant(2.0)
    params = init(make(fuse_kernels=True, kernel_init=ones, wi_fused_kernel_init=twos))["params"]
    assert (params["wi_fused"]["kernel"] == 2).all()
    assert (params["wo"]["kernel"] == 1).all()


def test_projections_come_from_the_factory():
    made = []

    def factory(**kwargs):
        made.append(kwargs)
        return DenseGeneral(**kwargs)

    init(make(dense_general_factory=factory, fuse_kernels=True))
    assert [kwargs["name"] for kwargs in made] == ["wi_fused", "wo"]
    keywords = {"features", "use_bias", "dtype", "kernel_init", "bias_init", "kernel_axis_names", "name"}
    assert set(made[0]) == keywords | {"reshape_kernel"}
    assert set(made[1]) == keywords


def test_dropout_is_shared_along_the_length():
    class Hidden(nn.Module):
        @nn.compact
        def __call__(self, x):
            branches = [x, jnp.ones_like(x)]
            return make(
                activations=("linear", "linear"),
                precomputed_intermediates=True,
                out_dim=1,
                intermediate_dropout_rate=0.5,
            )(branches)

    x = jnp.ones((2, 5, 32))
    y = Hidden().apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert {0.0, 2.0} == set(np.unique(y))
    assert (y == y[:, :1]).all()


@pytest.mark.parametrize("x", [X[0, 0], X[0], X])
def test_dropout_takes_any_rank(x):
    module = make(intermediate_dropout_rate=0.5)
    y = module.apply(init(module, x), x, rngs={"dropout": jax.random.key(0)})
    assert y.shape == x.shape


def test_given_dropouts_replace_the_rates():
    class Negate(nn.Module):
        def __call__(self, x, deterministic):
            return x if deterministic else -x

    module = make(activations=("linear",), intermediate_dropout=Negate(), final_dropout=Negate())
    variables = init(module)
    quiet = module.apply(variables, X, enable_dropout=False)
    np.testing.assert_array_equal(module.apply(variables, X, enable_dropout=True), quiet)
    once = module.clone(final_dropout=None, final_dropout_rate=0.0)
    np.testing.assert_array_equal(once.apply(variables, X, enable_dropout=True), -quiet)


def test_convolution_acts_on_the_first_branch_and_continues_from_its_cache():
    conv = Depthwise1dConv(axis_names=("mlp",))
    module = make(activations=("relu", "linear"), intermediate_conv=conv)
    params = init(module)["params"]
    full = module.apply({"params": params}, X, enable_dropout=False)
    a, b = (X @ params[f"wi_{i}"]["kernel"] for i in range(2))
    first = conv.apply({"params": params["intermediate_conv"]}, nn.relu(a))
    np.testing.assert_allclose(full, (first * b) @ params["wo"]["kernel"], atol=1e-6)

    step = Step.start(jnp.ones((1, 3), bool), cache_length=5)
    run = lambda cache, x, step: module.apply(  # noqa: E731
        {"params": params, **cache}, x, step=step, enable_dropout=False, mutable=["cache"]
    )
    prompt, cache = run({}, X[:, :3], step)
    rest, _ = run(cache, X[:, 3:], step.advance(2))
    np.testing.assert_allclose(jnp.concatenate([prompt, rest], axis=1), full, atol=1e-6)


def test_keywords_reach_the_convolution():
    module = make(intermediate_conv=Depthwise1dConv(axis_names=("mlp",)))
    with pytest.raises(ValueError, match="without prefill_lengths"):
        module.apply(init(module), X, prefill=True, enable_dropout=False, mutable=["cache"])


@pytest.mark.parametrize(("rank", "names"), [(2, ("length", "mlp")), (3, ("batch", "length", "mlp"))])
def test_hidden_layer_is_constrained_by_rank_under_axis_rules(rank, names):
    module, x = make(), X[0] if rank == 2 else X
    variables = init(module, x)
    with flax_partitioning.axis_rules([("batch", "data")]):
        with mock.patch.object(flax_partitioning, "with_sharding_constraint", side_effect=lambda x, _: x) as constrain:
            module.apply(variables, x, enable_dropout=False)
            module.clone(data_sharding_constraints=names[::-1]).apply(variables, x, enable_dropout=False)
    named = [call.args[1] for call in constrain.call_args_list]
    assert [n for n in named if n in (names, names[::-1])] == [names, names[::-1]]


def test_legacy_sharding_acts_without_axis_rules_only():
    with mock.patch("flaxformer.activation_partitioning.with_sharding", side_effect=lambda x, _: x) as legacy:
        init(make(activation_partitioning_dims=1))
        init(make(activation_partitioning_dims=None))
        with flax_partitioning.axis_rules([("batch", "data")]):
            init(make())
    assert [call.args[1] for call in legacy.call_args_list] == [1]


def test_sharded_equals_unsharded():
    module = make(activations=("gelu", "linear"), intermediate_dim=8)
    variables = init(module)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rules = [("batch", "data"), ("mlp", "model"), ("length", None), ("embed", None)]
    with jax.set_mesh(mesh), flax_partitioning.axis_rules(rules):
        y = jax.jit(lambda v, x: module.apply(v, x, enable_dropout=False))(variables, X)
    assert "data" in y.sharding.spec
    np.testing.assert_allclose(y, module.apply(variables, X, enable_dropout=False), atol=1e-6)


def test_rank_without_a_constraint_is_refused_under_axis_rules():
    x = jnp.ones((1, 1, 1, 1, 4))
    with flax_partitioning.axis_rules([("batch", "data")]), pytest.raises(ValueError, match="rank 5; expected rank 2"):
        init(make(), x)


def test_unknown_activation_is_answered_with_near_names():
    with pytest.raises(ValueError, match="unknown activation 'geluu'.*Did you mean gelu"):
        init(make(activations=("geluu",)))
    with pytest.raises(AttributeError, match="unknown activation '___'.*A function is taken as well"):
        init(make(activations=("___",)))


def test_activation_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="activation 3 is neither a name nor a function"):
        init(make(activations=(3,)))


@pytest.mark.parametrize("fuse_kernels", [True, False])
def test_precomputed_branches_need_out_dim(fuse_kernels):
    branches = jnp.ones((2, 3, 1, 6)) if fuse_kernels else [jnp.ones((2, 3, 6))]
    with pytest.raises(ValueError, match="needs out_dim"):
        init(make(precomputed_intermediates=True, fuse_kernels=fuse_kernels), branches)


@pytest.mark.parametrize("fuse_kernels", [True, False])
def test_precomputed_branches_must_match_the_activations(fuse_kernels):
    branches = jnp.ones((2, 3, 3, 6)) if fuse_kernels else [jnp.ones((2, 3, 6))] * 3
    module = make(precomputed_intermediates=True, fuse_kernels=fuse_kernels, out_dim=4, activations=("relu", "linear"))
    with pytest.raises(ValueError, match="inputs hold 3 precomputed branches; expected 2"):
        init(module, branches)


@pytest.mark.parametrize(
    "retired",
    [{"use_aqt": True}, {"weight_params": object()}, {"act_params": 1}, {"possibly_use_quantized_vars": True}],
)
def test_quantised_computation_is_refused(retired):
    with pytest.raises(RetiredError, match="given to MlpBlock; expected it unset"):
        init(make(**retired))
