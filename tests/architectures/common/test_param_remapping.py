import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.core import freeze

from flaxformer.architectures.common.param_remapping import (
    METADATA_KEY,
    VERSION_KEY,
    ParameterRemappable,
    RecursiveDefaultDict,
    filter_out_metadata,
)

META = {METADATA_KEY: {VERSION_KEY: 0}}


class Renamed(nn.Module, ParameterRemappable):
    """Saves `kernel` as `matrix` since version 1."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (3, 3))

    @property
    def save_format_metadata(self):
        return {VERSION_KEY: 1}

    def _to_save_format(self, params):
        params["matrix"] = params.pop("kernel")
        return params

    def _from_save_format(self, params):
        if params[METADATA_KEY][VERSION_KEY] == 1:
            params["kernel"] = params.pop("matrix")
        return params


class Model(nn.Module, ParameterRemappable):
    """Remappable modules as a field, in a list, in a dict, absent, and behind one that is not remappable."""

    field: nn.Module
    absent: nn.Module | None = None

    def setup(self):
        self.layers = [Renamed(), Renamed()]
        self.named = {"extra": (Renamed(),)}
        self.unused = Renamed()
        self.plain = nn.Sequential([Renamed()])

    def __call__(self, x):
        for layer in (*self.layers, *self.named["extra"], self.field, self.plain):
            x = layer(x)
        return x


MODEL = Model(field=Renamed())


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.ones((1, 3)))["params"]


def save(params):
    return MODEL.apply({}, params, method=MODEL.to_save_format)


def restore(saved):
    return MODEL.apply({}, saved, method=MODEL.from_save_format)


def test_every_remappable_submodule_is_converted(params):
    saved = save(params)
    assert saved[METADATA_KEY] == {VERSION_KEY: 0}
    for name in ("layers_0", "layers_1", "named_extra_0", "field"):
        assert set(saved[name]) == {"matrix", METADATA_KEY}
        assert saved[name][METADATA_KEY] == {VERSION_KEY: 1}
    assert set(saved["plain"]["layers_0"]) == {"kernel"}  # the scan does not look through other modules
    assert "unused" not in saved


@pytest.mark.parametrize("freeze_or_not", [freeze, lambda tree: tree])
def test_saving_and_restoring_is_the_identity(params, freeze_or_not):
    restored = restore(freeze_or_not(save(freeze_or_not(params))))
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True))


def test_parameters_without_metadata_are_of_version_zero(params):
    assert jax.tree.structure(restore(params)) == jax.tree.structure(params)


def test_params_are_left_as_they_were(params):
    names = sorted(params["field"])
    save(params)
    assert sorted(params["field"]) == names


def test_metadata_is_stripped_everywhere():
    tree = {"a": {**META, "b": {**META}}, "c": {"d": 1, **META}, "e": {}, **META}
    assert filter_out_metadata(tree) == {"c": {"d": 1}}


def test_reading_a_missing_key_makes_a_tree_that_vanishes_when_empty():
    tree = RecursiveDefaultDict()
    tree["a"]["b"]["c"] = 1
    assert tree["x"]["y"] == {}
    assert tree.to_dict() == {"a": {"b": {"c": 1}}}
    assert type(tree.to_dict()["a"]) is dict


def test_update_merges_recursively():
    tree = RecursiveDefaultDict({"a": {"b": 1}})
    tree.update({"a": {"c": {"d": 2}}, "e": 3})
    assert tree.to_dict() == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_pop_of_an_absent_key():
    tree = RecursiveDefaultDict({"a": 1})
    assert tree.pop("a") == 1
    assert tree.pop("a", 5) == 5
    empty = tree.pop("a")
    assert isinstance(empty, RecursiveDefaultDict) and not empty


@pytest.mark.parametrize("value", [1, {"c": 2}])
def test_leaves_are_never_overwritten(value):
    with pytest.raises(ValueError, match="'b' already holds a leaf; expected nothing there"):
        RecursiveDefaultDict({"b": 1}).merge("b", value)


def test_a_leaf_does_not_replace_a_tree():
    with pytest.raises(ValueError, match="'b' holds a mapping and int came to be merged into it"):
        RecursiveDefaultDict({"b": {"c": 1}}).merge("b", 2)
