import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import partitioning

from flaxformer.training import factoring, optimizers, schedules
from tests.training import recorded

CASES = ["default", "factored", "momentum_decay", "logical_rules"]
STATISTICS = ["v_row", "v_col", "v", "m"]


def optimizer_of(about):
    arguments = dict(about["constructor"])
    if "logical_factor_rules" in arguments:
        arguments["logical_factor_rules"] = optimizers.standard_logical_factor_rules()
        arguments["logical_axes"] = about["param_axes"]
    return optimizers.adafactor(**arguments)


@pytest.mark.parametrize("name", CASES)
def test_adafactor_parameters_and_statistics_are_those_recorded(name):
    about, inputs, outputs = recorded.load(f"runtime_adafactor_{name}")
    optimizer = optimizer_of(about)
    params = {key.split("/")[1]: jnp.asarray(x) for key, x in inputs.items() if key.startswith("params/")}
    state = optimizer.init(params)
    steps = len({key.split("/")[0] for key in inputs if key.startswith("grads_")})
    update = jax.jit(optimizer.update)
    for step in range(steps):
        gradients = {key: inputs[f"grads_step{step}/{key}"] for key in params}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        moments = {field: getattr(state[0], field) for field in STATISTICS[:3]}
        ema = [part for part in state if hasattr(part, "ema")]
        for key in params:
            np.testing.assert_allclose(params[key], outputs[f"params_step{step}/{key}"], rtol=1e-5, atol=1e-6)
            for field, tree in moments.items():
                expected = outputs[f"state_step{step}/{key}/{field}"]
                np.testing.assert_allclose(tree[key], expected, rtol=1e-5, atol=1e-6)
            if ema:
                np.testing.assert_allclose(ema[0].ema[key], outputs[f"state_step{step}/{key}/m"], rtol=1e-5, atol=1e-7)


def test_logical_roles_are_those_recorded():
    about, _, _ = recorded.load("runtime_adafactor_logical_rules")
    rules = optimizers.standard_logical_factor_rules()
    for path, axes in about["param_axes"].items():
        assert [role.name for role in factoring.roles(axes, rules, path)] == about["factor_map"][path]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *trees)


def test_each_layer_of_a_stack_is_updated_as_if_alone():
    axes, stacked_axes = {"kernel": ("embed", "mlp")}, {"kernel": ("embed", "layers", "mlp")}
    arguments = {"learning_rate": 0.1, "min_dim_size_to_factor": 2, "clipping_threshold": 0.5}
    rules = optimizers.standard_logical_factor_rules()
    keys = jax.random.split(jax.random.key(0), 4)
    params = [
        {"kernel": scale * jax.random.normal(key, (4, 6))} for key, scale in zip(keys[:2], (1.0, 9.0), strict=True)
    ]
    gradients = [
        {"kernel": scale * jax.random.normal(key, (4, 6))} for key, scale in zip(keys[2:], (1.0, 1e3), strict=True)
    ]
    alone = optimizers.adafactor(**arguments, logical_factor_rules=rules, logical_axes=axes)
    expected = stack([alone.update(g, alone.init(p), p)[0] for g, p in zip(gradients, params, strict=True)])
    together = optimizers.adafactor(**arguments, logical_factor_rules=rules, logical_axes=stacked_axes)
    stacked = stack(params)
    actual, _ = together.update(stack(gradients), together.init(stacked), stacked)
    np.testing.assert_allclose(actual["kernel"], expected["kernel"], rtol=1e-5)


def test_unfactored_along_logical_axes_keeps_the_whole_second_moment():
    optimizer = optimizers.adafactor(
        0.1,
        factored=False,
        logical_factor_rules=optimizers.standard_logical_factor_rules(),
        logical_axes={"kernel": ("embed", "heads", "kv")},
    )
    state = optimizer.init({"kernel": jnp.ones((2, 3, 4))})
    assert state[0].v["kernel"].shape == (2, 3, 4) and state[0].v_row["kernel"].shape == (1,)


def test_axis_names_come_from_the_variables_of_a_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = partitioning.param_with_axes(
                "kernel", nn.initializers.ones, (3, 2, 4), axes=("embed", "heads", "kv")
            )
            return jnp.einsum("bd,dnh->bnh", x, kernel)

    variables = Model().init(jax.random.key(0), jnp.ones((1, 3)))
    axes = optimizers.logical_axes(variables)
    optimizer = optimizers.adafactor(
        0.1, logical_factor_rules=optimizers.standard_logical_factor_rules(), logical_axes=axes
    )
    assert optimizer.init(variables["params"])[0].v_row["kernel"].shape == (3,)
    assert optimizers.logical_axes({"params": {}}) is None


def test_weight_decay_may_follow_the_learning_rate():
    params = {"scale": jnp.full((3,), 2.0)}
    zero = {"scale": jnp.zeros((3,))}
    for rate in (0.1, schedules.create_learning_rate_scheduler("constant", 0.1)):
        optimizer = optimizers.adafactor(rate, weight_decay_rate=0.5, weight_decay_rate_lr_exponent=2.0)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["scale"], -2.0 * 0.5 * 0.1**2, rtol=1e-5)


def test_gradients_are_clipped_to_a_global_norm():
    params = {"a": jnp.ones((2,)), "b": jnp.ones((2,))}
    gradients = {"a": jnp.full((2,), 30.0), "b": jnp.full((2,), 40.0)}
    optimizer = optimizers.clip_and_accumulate(optax.sgd(1.0), global_norm_clip_threshold=1.0)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)


@pytest.mark.parametrize("make", [optimizers.adafactor, optimizers.adamw])
def test_accumulated_gradients_give_one_update_by_their_mean(make):
    params = {"kernel": jnp.ones((3, 2))}
    first, second = ({"kernel": jax.random.normal(jax.random.key(i), (3, 2))} for i in (0, 1))
    whole, parts = make(0.1), make(0.1, accumulate_steps=2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    expected, _ = whole.update(mean, whole.init(params), params)
    nothing, state = parts.update(first, parts.init(params), params)
    actual, _ = parts.update(second, state, params)
    assert not jnp.any(nothing["kernel"])
    np.testing.assert_allclose(actual["kernel"], expected["kernel"], rtol=1e-5)


def test_adamw_is_optax_adamw():
    params, gradients = {"kernel": jnp.ones((3, 2))}, {"kernel": jnp.full((3, 2), 0.3)}
    ours, theirs = optimizers.adamw(0.1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)
    actual, _ = ours.update(gradients, ours.init(params), params)
    expected, _ = theirs.update(gradients, theirs.init(params), params)
    np.testing.assert_array_equal(actual["kernel"], expected["kernel"])


RULES = optimizers.standard_logical_factor_rules()


@pytest.mark.parametrize(
    ("axes", "shape", "rules", "message"),
    [
        (None, (2, 3, 4), RULES, r"kernel of shape \(2, 3, 4\) has the logical axes None; expected 3 names"),
        (("embed",), (2, 3), RULES, r"kernel of shape \(2, 3\) has the logical axes .*embed.*; expected 2 names"),
        (
            ("embed", "wide", "kv"),
            (2, 3, 4),
            RULES,
            "kernel has the axis 'wide', and .* gives it None; expected one",
        ),
        (("embed", "kv"), (2, 3), RULES | {"kv": "diagonal"}, "the axis 'kv', and .* gives it 'diagonal'; expected"),
        (("embed", None, "kv"), (2, 3, 4), RULES, "the roles row, none, column; expected no 'none' beside rows"),
    ],
)
def test_axes_that_cannot_be_factored_are_named(axes, shape, rules, message):
    optimizer = optimizers.adafactor(
        logical_factor_rules=rules, logical_axes={"other": ("embed",)} if axes is None else {"kernel": axes}
    )
    with pytest.raises(ValueError, match=message):
        optimizer.init({"kernel": jnp.ones(shape)})


def test_rules_without_axis_names_say_where_to_get_them():
    with pytest.raises(ValueError, match="without logical_axes; expected .*optimizers.logical_axes"):
        optimizers.adafactor(logical_factor_rules=RULES)


def test_fewer_than_one_accumulated_step_is_refused():
    with pytest.raises(ValueError, match="accumulate_steps is 0; expected at least 1"):
        optimizers.adamw(0.1, accumulate_steps=0)


def one_update(params, gradients, **arguments):
    optimizer = optimizers.adafactor(0.1, clipping_threshold=None, **arguments)
    return optimizer.update(gradients, optimizer.init(params), params)


def test_the_scale_of_a_parameter_may_have_an_upper_bound():
    params, gradients = {"small": jnp.full((2,), 0.5), "large": jnp.full((2,), 8.0)}, {"small": 1.0, "large": 1.0}
    gradients = {name: jnp.ones((2,)) for name in params}
    updates, _ = one_update(params, gradients, max_parameter_scale=2.0)
    np.testing.assert_allclose(updates["small"], -0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["large"], -0.1 * 2.0, rtol=1e-5)


def test_which_updates_are_scaled_may_go_by_path():
    params = {"norm": {"scale": jnp.full((2,), 3.0)}, "wo": jnp.full((2,), 3.0)}
    gradients = jax.tree.map(jnp.ones_like, params)
    scaled = optimizers.HParamMap(((r"norm/", False), (r".*", True)))
    updates, _ = one_update(params, gradients, multiply_by_parameter_scale=scaled)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["wo"], -0.3, rtol=1e-5)


def test_how_parameters_are_factored_may_go_by_path():
    params = {"attention": jnp.ones((4, 2, 3)), "stack": jnp.ones((5, 4)), "wo": jnp.ones((4, 6))}
    axes = {"attention": ("embed", "heads", "kv"), "stack": ("layers", "embed"), "wo": ("embed", "mlp")}
    rules = (("attention", ("row", "column", "col")), ("stack", ("batch", "none")), ("wo", None))
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    updates, state = one_update(params, gradients, factor_map=optimizers.HParamMap(rules), min_dim_size_to_factor=4)
    expected, expected_state = one_update(
        params, gradients, logical_factor_rules=RULES, logical_axes=axes, min_dim_size_to_factor=4
    )
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def test_entries_that_would_become_nan_keep_their_value():
    params = {"a": jnp.ones((3,)), "b": jnp.ones((2,))}
    gradients = {"a": jnp.array([1.0, jnp.nan, 1.0]), "b": jnp.ones((2,))}
    optimizer = optimizers.adafactor(
        0.1, clipping_threshold=None, multiply_by_parameter_scale=False, skip_nan_updates=True
    )
    updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.1, 0.0, -0.1], rtol=1e-5)
    np.testing.assert_allclose(state[0].v["a"], [1.0, 0.0, 1.0])
    assert state[0].count == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor_map": {"a": "row"}}, "factor_map is a dict; expected one of HParamMap, NoneType"),
        (
            {"multiply_by_parameter_scale": 1.0},
            "multiply_by_parameter_scale is a float; expected one of HParamMap, bool",
        ),
        ({"factor_map": optimizers.HParamMap(()), "factored": False}, "factor_map was given with factored=False"),
        ({"factor_map": optimizers.HParamMap(()), "logical_factor_rules": RULES}, "and no rules: a map says"),
        (
            {"factor_map": optimizers.HParamMap(((".", ("row", "up")),))},
            r"the roles \('row', 'up'\); expected 2 of row",
        ),
        ({"factor_map": optimizers.HParamMap(((".", ("row",)),))}, r"kernel of shape \(2, 2\) the roles \('row',\)"),
    ],
)
def test_maps_that_say_nothing_clear_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        one_update({"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}, **arguments)


def test_parts_of_the_parameters_have_their_own_optimizer_and_the_rest_stays():
    params = {"a": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    parts = [(["a/bias"], optax.sgd(1.0)), (lambda path, x: path.startswith("b/"), lambda: optax.sgd(0.5))]
    optimizer = optimizers.partitioned(parts)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state, params)
    assert [float(x.ravel()[0]) for x in jax.tree.leaves(updates)] == [-1.0, 0.0, -0.5]
    assert len(jax.tree.leaves(state)) == 0


def test_selectors_that_overlap_or_select_nothing_are_refused():
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="the parameter a is selected by the parts 0, 1; expected at most one"):
        optimizers.partitioned([("a", optax.sgd(1.0)), (".", optax.sgd(1.0))]).init(params)
    with pytest.raises(ValueError, match=r"the selectors \['b'\] select no parameter"):
        optimizers.partitioned([("b", optax.sgd(1.0))]).init(params)
