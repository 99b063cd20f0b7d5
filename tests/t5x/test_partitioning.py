import jax
import pytest
from jax.sharding import PartitionSpec

from flaxformer.t5x import partitioning
from tests.contracts import models


@pytest.mark.parametrize(
    ("dims", "embed", "third"),
    [((1, 1), [None], True), ((2, 1), ["model"], False), ((1, 2), ["data"], False), ((2, 2), ["model", "data"], False)],
)
def test_standard_rules_place_the_width_by_the_dimensions(dims, embed, third):
    rules = partitioning.standard_logical_axis_rules(*dims, additional_rules=[("mine", "data")])
    assert [place for name, place in rules if name == "embed"] == embed
    assert (rules[2][0] == "embed") is third and rules[-1] == ("mine", "data")
    assert dict(rules)["batch"] == "data" and {name for name, place in rules if place == "model"} - {"embed"} == {
        "vocab", "mlp", "heads", "joined_kv"
    }  # fmt: skip


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="activation_partitioning_dims is 3 and parameter_partitioning_dims 1"):
        partitioning.standard_logical_axis_rules(3)


def test_parameters_are_placed_by_their_axis_names():
    module = models.mlp()
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jax.numpy.ones((1, 2, 16)), enable_dropout=False))
    placed = partitioning.PjitPartitioner(num_partitions=1).shardings(variables)
    assert placed["wo"]["kernel"].spec == PartitionSpec("model", None)
    assert placed["wo"]["kernel"].mesh.axis_names == ("data", "model")


def test_partitions_must_agree_and_divide_the_devices():
    assert partitioning.PjitPartitioner().partitions == 1
    for options in (
        {"num_partitions": 2, "model_parallel_submesh": (1, 1)},
        {"num_partitions": 3 + jax.device_count()},
    ):
        with pytest.raises(ValueError, match="expected one number that divides"):
            _ = partitioning.PjitPartitioner(**options).partitions
