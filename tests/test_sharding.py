import copy
import pickle

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.linen import partitioning

from flaxformer import sharding
from flaxformer.components.embedding import Embed, MultiEmbed


def embed_variables():
    module = MultiEmbed({"a": Embed(5, 4), "b": Embed(3, 4, axes=("rows", "embed"))})
    ids = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(lambda key: module.init(key, a=ids, b=ids), jax.random.key(0))


def test_axis_names_are_leaves_that_survive_copying():
    names = sharding.AxisNames("vocab", "embed")
    assert names == ("vocab", "embed")
    assert jax.tree.leaves({"x": names}) == [names]
    for copied in (copy.deepcopy(names), pickle.loads(pickle.dumps(names))):
        assert copied == names and isinstance(copied, sharding.AxisNames)
    assert repr(names) == "AxisNames('vocab', 'embed')"


def test_names_are_arranged_as_the_parameters():
    names = sharding.get_axis_names(embed_variables())
    assert names == {
        "embedders_a": {"embedding": ("vocab", "embed")},
        "embedders_b": {"embedding": ("rows", "embed")},
    }
    assert isinstance(names["embedders_a"]["embedding"], sharding.AxisNames)


def test_frozen_variables_are_read_alike():
    variables = embed_variables()
    assert sharding.get_axis_names(flax.core.freeze(variables)) == sharding.get_axis_names(variables)
    sharding.check_params_and_axis_names_match(flax.core.freeze(variables))


def test_names_of_another_type_are_refused():
    for error in (ValueError, TypeError):
        with pytest.raises(error, match="params_axes holds tuple .* at 'w_axes'; expected AxisMetadata"):
            sharding.get_axis_names({"params_axes": {"w_axes": ("vocab",)}})


def test_parameters_without_names_are_refused():
    variables = embed_variables()
    del variables["params_axes"]["embedders_b"]
    with pytest.raises(ValueError, match="names were not sow'd for parameter embedders_b/embedding; expected 2"):
        sharding.check_params_and_axis_names_match(variables)


def test_a_name_too_few_is_refused():
    variables = embed_variables()
    variables["params_axes"]["embedders_b"]["embedding_axes"] = sharding.axis_names("rows")
    with pytest.raises(ValueError, match="embedders_b/embedding of shape .*there is not one name for each dimension"):
        sharding.check_params_and_axis_names_match(variables)


def test_the_same_names_may_be_recorded_again():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self):
            for _ in range(2):
                self.sow("params_axes", "w_axes", sharding.axis_names("embed"), reduce_fn=sharding.reduce_fn)

    _, variables = Twice().apply({}, mutable=["params_axes"])
    assert variables["params_axes"]["w_axes"] == partitioning.AxisMetadata(names=("embed",))


def test_other_names_for_the_same_parameter_are_refused():
    with pytest.raises(ValueError, match="differ from .*'embed'.*expected one set of names"):
        sharding.reduce_fn(sharding.axis_names("embed"), sharding.axis_names("mlp"))


def test_only_axis_metadata_is_recorded():
    for error in (ValueError, TypeError):
        with pytest.raises(error, match=r"axis names came as tuple \('embed',\); expected AxisMetadata"):
            sharding.reduce_fn((), ("embed",))


def test_axis_metadata_is_not_mixed_with_other_things():
    for error in (ValueError, AssertionError):
        with pytest.raises(error, match="params_axes already holds 'something'; expected nothing or AxisMetadata"):
            sharding.reduce_fn("something", sharding.axis_names("embed"))
