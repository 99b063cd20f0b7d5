import sys
import types

import jax
import numpy as np
import pytest

from flaxformer import param_conversion_util
from flaxformer.extras import MissingExtraError


def test_names_are_found_with_and_without_output_suffix():
    tf_params = {"bert/w": np.ones(2), "bert/b:0": np.zeros(3)}
    mapping = {("a", "b", "kernel"): "w", ("bias",): "b"}
    params = param_conversion_util.convert_tf_params(tf_params, mapping, "bert/")
    assert jax.tree.map(np.shape, params) == {"a": {"b": {"kernel": (2,)}}, "bias": (3,)}
    assert isinstance(params["bias"], jax.Array)


def test_a_missing_variable_is_named():
    with pytest.raises(ValueError, match=r"no variable 'bert/w' \(nor 'bert/w:0'\); it has \['x'\]. Check tf_prefix"):
        param_conversion_util.convert_tf_params({"x": 1}, {("w",): "w"}, "bert/")


def test_integers_in_names_are_unique_and_sorted_as_numbers():
    names = ["layer_10/w", "layer_2/w", "layer_2/b", "the/layer_3", "pooler"]
    assert param_conversion_util.get_int_regex_matches(r"layer_(\d+)/", names) == [2, 10]


def test_every_variable_of_a_checkpoint_is_read(monkeypatch):
    stored = {"w": np.ones(2), "b": np.zeros(3)}
    reader = types.SimpleNamespace(
        get_variable_to_shape_map=lambda: {name: x.shape for name, x in stored.items()}, get_tensor=stored.get
    )
    fake = types.ModuleType("tensorflow")
    fake.train = types.SimpleNamespace(load_checkpoint={"model.ckpt": reader}.__getitem__)
    monkeypatch.setitem(sys.modules, "tensorflow", fake)
    assert param_conversion_util.load_tf_params("model.ckpt") == stored


def test_without_tensorflow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match="tensorflow is not installed.*pip install 'flaxformer"):
        param_conversion_util.load_tf_params("model.ckpt")
