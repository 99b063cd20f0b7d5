import jax
import jax.numpy as jnp
import optax
import pytest

from flaxformer.finetuning import join, split, train_only

PARAMS = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}}


def test_only_chosen_parameters_change_and_have_state():
    optimizer = train_only(optax.adam(0.1), ["b/.*"])
    state = optimizer.init(PARAMS)
    moments = [x for x in jax.tree.leaves(state) if jnp.ndim(x)]
    assert sorted(x.shape for x in moments) == [(2,), (2,), (2, 2), (2, 2)]
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    changed = jax.tree.map(lambda x: bool(jnp.any(x != 0)), updates)
    assert changed == {"a": {"kernel": False}, "b": {"kernel": True, "scale": True}}


def test_a_wrong_pattern_is_refused_by_init():
    with pytest.raises(ValueError, match="matches no parameter"):
        train_only(optax.sgd(0.1), ["c/.*"]).init(PARAMS)


def test_what_is_split_is_joined_again():
    trained, frozen = split(PARAMS, [".*/scale"])
    assert list(trained) == ["b"] and list(trained["b"]) == ["scale"]
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(PARAMS)


def test_a_parameter_in_two_trees_is_refused():
    with pytest.raises(ValueError, match="a/kernel is in two trees"):
        join({"a": {"kernel": 1}}, {"a": {"kernel": 2}})
