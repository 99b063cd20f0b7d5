import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.mixture import (
    MixtureOfExperts,
    gates_of_all,
    gates_of_chosen,
    load_balancing_loss,
    router_z_loss,
    within_capacity,
)
from flaxformer.step import Step

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)


def mixture(**options):
    return MixtureOfExperts(**{"num_experts": 4, "intermediate_dim": 8, "num_selected": 2, **options})


def params_of(layer):
    return jax.jit(lambda: layer.init(jax.random.key(0), X, enable_dropout=False))()["params"]


def by_hand(params, layer, kept=None):
    """Every token through every expert, and then weighed."""
    router, expert = params["router"], params["expert"]
    logits = X @ router["kernel"] + router.get("bias", 0)
    _, chosen = jax.lax.top_k(logits, layer.num_selected)
    gates = layer.gates(logits, chosen)
    gates = gates if kept is None else jnp.where(kept(chosen), gates, 0)
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", X, expert["wi"]["kernel"]) + expert["wi"].get("bias", 0))
    outputs = jnp.einsum("btef,efd->bted", hidden, expert["wo"]["kernel"]) + expert["wo"].get("bias", 0)
    weights = jnp.sum(jax.nn.one_hot(chosen, layer.num_experts) * gates[..., None], axis=2)
    return jnp.einsum("bted,bte->btd", outputs, weights)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gates": gates_of_chosen},
        {"num_selected": 1, "use_bias": True, "router_bias": True},
        {"num_selected": 4, "bias_init": jax.nn.initializers.normal(1.0), "use_bias": True, "router_bias": True},
    ],
)
def test_tokens_pass_through_the_experts_that_they_choose(options):
    layer = mixture(**options)
    params = params_of(layer)
    loss = lambda run: lambda params: jnp.sum(jnp.sin(run(params)))  # noqa: E731
    ours = loss(lambda params: layer.apply({"params": params}, X, enable_dropout=False))
    theirs = loss(lambda params: by_hand(params, layer))
    (found, gradients), (expected, wanted) = (jax.jit(jax.value_and_grad(each))(params) for each in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, wanted)


def test_experts_take_no_more_tokens_of_a_row_than_they_have_room_for():
    layer = mixture(capacity=1)
    params = params_of(layer)
    output = layer.apply({"params": params}, X, enable_dropout=False)
    kept = lambda chosen: within_capacity(chosen, 4, 1)  # noqa: E731
    np.testing.assert_allclose(output, by_hand(params, layer, kept), atol=1e-5)
    assert not np.allclose(output, by_hand(params, layer), atol=1e-5)


def test_first_choices_come_before_second_ones():
    chosen = jnp.array([[0, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(within_capacity(chosen, 2, 2), [[True, True], [True, False], [True, False]])


def test_branches_of_a_search_stand_alone():
    layer = mixture(capacity=1)
    params = params_of(layer)
    step = Step.start(jnp.ones((2, 1), bool), 12).advance().branch(2, 5, 12)
    output = layer.apply({"params": params}, X, enable_dropout=False, step=step)
    np.testing.assert_allclose(output, by_hand(params, layer), atol=1e-5)


def test_every_expert_is_initialised_as_one_layer_would_be():
    layer = MixtureOfExperts(num_experts=64, intermediate_dim=64, kernel_init=jax.nn.initializers.lecun_normal())
    kernel = jax.jit(lambda: layer.init(jax.random.key(0), jnp.ones((1, 1, 64))))()["params"]["expert"]["wi"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 1 / 8, rtol=0.02)
    assert not np.allclose(kernel[0], kernel[1])


def test_jitter_is_for_training():
    layer = mixture(jitter=0.9, router_init=jax.nn.initializers.normal(1.0))
    variables = {"params": params_of(layer)}
    run = lambda train, key: layer.apply(variables, X, enable_dropout=train, rngs={"dropout": jax.random.key(key)})  # noqa: E731
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert not np.allclose(run(True, 0), run(True, 1))


def test_losses_are_least_where_experts_are_used_alike():
    even = 10.0 * jnp.eye(4)[jnp.arange(8) % 4]
    chosen = jnp.argmax(even, -1)[:, None]
    np.testing.assert_allclose(load_balancing_loss(even, chosen), 1, rtol=1e-5)
    uneven = 10.0 * jnp.eye(4)[jnp.zeros(8, int)]
    np.testing.assert_allclose(load_balancing_loss(uneven, jnp.zeros((8, 1), int)), 4, rtol=1e-2)
    valid = jnp.arange(8) < 4
    padded = jnp.where(valid[:, None], even, uneven)
    np.testing.assert_allclose(load_balancing_loss(padded, jnp.argmax(padded, -1)[:, None], valid), 1, rtol=1e-5)
    np.testing.assert_allclose(router_z_loss(jnp.zeros((3, 4))), np.log(4) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 5}, "num_selected is 5 with num_experts=4; expected 1 to 4"),
        ({"num_selected": 0}, "num_selected is 0 with num_experts=4; expected 1 to 4"),
        ({"capacity": 0}, "capacity is 0; expected at least 1 token per row and expert, or None"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixture(**options).init(jax.random.key(0), X)


def test_gates_of_all_sum_to_less_than_one_and_of_chosen_to_one():
    logits, chosen = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[1, 0]])
    assert float(gates_of_all(logits, chosen).sum()) < 0.95
    np.testing.assert_allclose(gates_of_chosen(logits, chosen).sum(), 1, rtol=1e-6)
