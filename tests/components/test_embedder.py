import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.embedder import Embedder, InspectableMultiEmbedder, checked_ids


class Sum(nn.Module, InspectableMultiEmbedder[tuple]):
    def get_individual_embeddings(self, inputs, *, segment_ids=None, decode=False, enable_dropout=True):
        return [x + decode for x in inputs]

    def combine_embeddings(self, embeddings):
        return sum(embeddings)


def test_inspectable_call_is_the_composition_of_its_two_steps():
    one, two = jnp.array(1), jnp.array(2)
    assert Sum().apply({}, (one, two)) == 3
    assert Sum().apply({}, (one, two), decode=True) == 5


def test_interfaces_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        Embedder()


def test_ids_are_cast_only_when_asked():
    np.testing.assert_array_equal(checked_ids(jnp.array([1.0, 2.9]), "int32"), [1, 2])
    assert checked_ids(jnp.array([1, 2], jnp.uint8)).dtype == jnp.uint8


def test_float_ids_are_refused():
    with pytest.raises(ValueError, match=r"ids have dtype float32; expected an integer.*cast_input_dtype='int32'"):
        checked_ids(jnp.ones((2, 3)))
