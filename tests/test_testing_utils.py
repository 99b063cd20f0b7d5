import json

import jax
import jax.numpy as jnp
import pytest
from flax.core import freeze

from flaxformer import testing_utils
from flaxformer.architectures.common.param_remapping import METADATA_KEY, VERSION_KEY
from flaxformer.components.embedding import Embed, MultiEmbed
from flaxformer.sharding import axis_names

IDS = jnp.zeros((1, 2), jnp.int32)
VARIABLES = testing_utils.abstract_init(
    MultiEmbed({"token": Embed(3, 7)}), inputs={"token": IDS}, static_kwargs={"decode": False}
)
PARAMS, AXES = VARIABLES["params"], VARIABLES["params_axes"]


def test_abstract_variables_hold_no_numbers():
    assert isinstance(PARAMS["embedders_token"]["embedding"], jax.ShapeDtypeStruct)


@pytest.mark.parametrize("wrap", [freeze, lambda tree: tree, lambda tree: {**tree, METADATA_KEY: {VERSION_KEY: 0}}])
def test_descriptions_of_parameters(wrap):
    def described(leaf):
        return {"embedders_token": {"embedding": leaf}}

    assert testing_utils.param_shapes(wrap(PARAMS)) == described([3, 7])
    assert testing_utils.param_dtypes_shapes(wrap(PARAMS)) == described(["float32", 3, 7])
    with_axes = testing_utils.param_dtypes_shapes_axes(wrap(PARAMS), AXES)
    assert with_axes == described(["float32", "vocab=3", "embed=7"])


def test_axes_must_be_named_as_such():
    with pytest.raises(ValueError, match="params_axes holds w; expected names that end in '_axes'"):
        testing_utils.param_dtypes_shapes_axes({"w": jnp.ones(3)}, {"w": axis_names("embed")})


@pytest.mark.parametrize("axes", [{}, {"w_axes": axis_names("a", "b")}])
def test_there_must_be_a_name_for_each_axis(axes):
    with pytest.raises(ValueError, match=r"parameter w of shape \(3,\) has axis names .*; expected one for each axis"):
        testing_utils.param_dtypes_shapes_axes({"w": jnp.ones(3)}, axes)


def test_formatted_trees_are_json_with_short_lists_on_one_line():
    tree = {"a": {"kernel": ["float32", "embed=7"], "empty": {}}, "long": [f"axis_number_{i}=1" for i in range(8)]}
    text = testing_utils.format_params_shapes(tree)
    assert json.loads(text) == tree
    assert '    "kernel": ["float32", "embed=7"],\n' in text
    assert '  "long": [\n    "axis_number_0=1",\n' in text
    assert all(len(line) < 80 for line in text.splitlines())


@pytest.fixture
def expected(tmp_path):
    def write(name, tree):
        (tmp_path / name).write_text(json.dumps(tree))

    write("shapes.json", {"embedders_token": {"embedding": [3, 7]}})
    write("types.json", {"embedders_token": {"embedding": ["float32", 3, 7]}})
    write("axes.json", {"embedders_token": {"embedding": ["float32", "vocab=3", "embed=7"]}})
    return testing_utils.ExpectedJsonFiles(tmp_path)


def test_equal_trees_pass(expected):
    expected.check_params_shapes_only(PARAMS, "shapes.json")
    expected.check_params(PARAMS, "types.json")
    expected.check_params_and_axes(PARAMS, AXES, "axes.json")


def test_files_are_below_the_test_source_folder(expected, monkeypatch):
    monkeypatch.setenv("TEST_SRCDIR", str(expected.path.parent))
    files = testing_utils.ExpectedJsonFiles(expected.path.name)
    assert files.get_params("shapes.json") == {"embedders_token": {"embedding": [3, 7]}}


def test_differing_trees_fail_and_the_actual_one_is_printed(expected, capsys):
    other = {"embedders_token": {"embedding": jnp.ones((3, 8))}, "extra": jnp.ones(1)}
    with pytest.raises(AssertionError, match=r"2 parameters differ from shapes.json, the first is embedders_token/"):
        expected.check_params_shapes_only(other, "shapes.json")
    assert json.loads(capsys.readouterr().out)["extra"] == [1]


def test_a_missing_parameter_fails(expected):
    with pytest.raises(ValueError, match=r"embedders_token/embedding: None; expected \[3, 7\]"):
        expected.check_params_shapes_only({"other": jnp.ones(1)}, "shapes.json")


def test_a_missing_file_is_named(expected):
    with pytest.raises(ValueError, match="there is no file .*nothing.json"):
        expected.get_params("nothing.json")
