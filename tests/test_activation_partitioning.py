from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from flaxformer import activation_partitioning
from flaxformer.activation_partitioning import with_sharding, with_sharding_migration

X = jnp.ones((2, 3, 4))
NAMES = ("batch", "length", "embed")


@pytest.fixture
def calls(monkeypatch):
    """The two ways to shard, recorded instead of done."""
    logical, legacy = mock.Mock(return_value="logical"), mock.Mock(return_value="legacy")
    monkeypatch.setattr(activation_partitioning.flax_partitioning, "with_sharding_constraint", logical)
    monkeypatch.setattr(activation_partitioning, "with_sharding", legacy)
    return logical, legacy


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.setattr(activation_partitioning.flax_partitioning, "get_axis_rules", lambda: [("batch", "data")])


@pytest.fixture
def accelerator(monkeypatch):
    """A mesh on what passes for an accelerator; constraints are returned as specs."""
    monkeypatch.setattr(activation_partitioning.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(activation_partitioning, "global_mesh_defined", lambda: True)
    monkeypatch.setattr(activation_partitioning.jax.lax, "with_sharding_constraint", lambda x, spec: spec)


def test_without_legacy_number_the_logical_names_decide(calls):
    assert with_sharding_migration(X, None, NAMES) == "logical"
    calls[0].assert_called_once_with(X, NAMES)


@pytest.mark.parametrize("dims", [1, 2])
def test_without_rules_the_legacy_number_decides(calls, dims):
    assert with_sharding_migration(X, dims, NAMES) == "legacy"
    calls[1].assert_called_once_with(X, dims)


def test_with_rules_one_axis_means_the_logical_names(calls, rules):
    assert with_sharding_migration(X, 1, NAMES) == "logical"


def test_with_rules_two_axes_are_refused(calls, rules):
    with pytest.raises(
        ValueError, match="axis rules are set and activation_partitioning_dims is 2; .* both are present"
    ):
        with_sharding_migration(X, 2, NAMES)


def test_nothing_happens_on_one_cpu():
    assert with_sharding(X, 2) is X
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert with_sharding(X, 2) is X


@pytest.mark.parametrize(
    ("rank", "dims", "spec"),
    [
        (1, 1, ("data",)),
        (3, 1, ("data",)),
        (3, 2, ("data", None, "model")),
        (4, 2, ("data", None, "model", None)),
    ],
)
def test_axes_by_rank_and_number(accelerator, rank, dims, spec):
    assert with_sharding(jnp.ones((1,) * rank), dims) == PartitionSpec(*spec)


def test_other_ranks_are_refused(accelerator):
    with pytest.raises(
        ValueError, match="activations of rank 2 cannot be partitioned over 2 axes; expected rank 3 or 4"
    ):
        with_sharding(jnp.ones((1, 1)), 2)


def test_other_numbers_are_refused(accelerator):
    with pytest.raises(ValueError, match="partitioning over 3 axes was asked for; expected 1 or 2"):
        with_sharding(X, 3)
