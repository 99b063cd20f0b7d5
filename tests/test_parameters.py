"""Parameters that are there are returned at once; everything else is as Flax does it."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning

from flaxformer.parameters import parameter
from flaxformer.types import Initializer

KEY = jax.random.key(0)


class Scale(nn.Module):
    """One parameter."""

    init_fn: Initializer
    width: int = 3
    axes: tuple[str, ...] | None = ("embed",)

    @nn.compact
    def __call__(self):
        return parameter(self, "scale", self.init_fn, [self.width], axes=self.axes)


def test_it_is_declared_as_flax_declares_it():
    variables = Scale(nn.initializers.normal()).init(KEY)
    assert variables["params_axes"] == {"scale_axes": partitioning.AxisMetadata(("embed",))}
    assert variables["params"]["scale"].shape == (3,)
    assert variables["params"]["scale"].dtype == jnp.float32
    assert "params_axes" not in Scale(nn.initializers.normal(), axes=None).init(KEY)


def test_one_that_is_there_is_not_initialised_again():
    called = []

    def init(key, shape, dtype):
        called.append(shape)
        return jnp.zeros(shape, dtype)

    given = {"params": {"scale": jnp.arange(3.0)}}
    np.testing.assert_array_equal(Scale(init).apply(given), np.arange(3))
    assert not called
    Scale(init).init(KEY)
    assert called == [(3,)]


def test_axis_names_are_given_to_who_asks_for_them():
    given = {"params": {"scale": jnp.arange(3.0)}}
    found, changed = Scale(nn.initializers.zeros).apply(given, mutable=["params_axes"])
    np.testing.assert_array_equal(found, np.arange(3))
    assert changed["params_axes"] == {"scale_axes": partitioning.AxisMetadata(("embed",))}


def test_another_shape_is_refused():
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r"\(4,\)"):
        Scale(nn.initializers.zeros).apply({"params": {"scale": jnp.ones(4)}})


def test_a_missing_one_is_refused():
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="scale"):
        Scale(nn.initializers.zeros).apply({"params": {"other": jnp.ones(3)}})


def test_boxes_are_opened():
    box = nn.Partitioned(jnp.arange(3.0), names=(None,))
    np.testing.assert_array_equal(Scale(nn.initializers.zeros).apply({"params": {"scale": box}}), np.arange(3))


def test_it_is_laid_out_by_axis_rules():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    given = {"params": {"scale": jnp.arange(3.0)}}
    with jax.set_mesh(mesh), partitioning.axis_rules([("embed", "data")]):
        program = str(jax.make_jaxpr(Scale(nn.initializers.zeros).apply)(given))
    assert "sharding_constraint" in program
