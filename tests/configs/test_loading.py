"""Loading equals gin, touches nothing global, and yields objects that stay usable."""

import pickle
import threading

import gin
import pytest

from flaxformer import configs
from tests.configs import toy


def described(value):
    """`value` with every factory in it called, as plain data."""
    if isinstance(value, toy.Branch):
        return described(value.grow())
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    if callable(value):
        return ["factory", described(value())]
    return value


def built_by_gin(path, bindings=()):
    gin.parse_config_files_and_bindings([path], bindings)
    return gin.query_parameter("ARCHITECTURE/gin.macro.value").scoped_configurable_fn()


@pytest.mark.parametrize(
    "bindings",
    [
        (),
        ("SIZE = 4",),
        ("toy.Leaf.size = 5", "red/Leaf.size = 6"),
        ("twig/toy.Branch.length = 1", "SIZE = 'x'", "SIZE = 'y'"),
        ("FACTORY = @toy.together", "toy.together.first = %SIZE"),
        ("LEAVES = (@twig/toy.Leaf(),)", "twig/toy.Leaf.colour = 'green'"),
    ],
)
def test_what_is_built_equals_what_gin_builds(write, clean_gin, bindings):
    path = write(toy.EVERYTHING, header="")
    expected = described(built_by_gin(path, bindings))
    assert described(configs.load(path, bindings)) == expected


def test_global_gin_state_is_untouched_and_unread(write, clean_gin):
    path = write("ARCHITECTURE = @toy.Branch()\ntoy.Branch.length = 1")
    gin.parse_config_file(path)
    gin.bind_parameter("ARCHITECTURE/gin.macro.value", 5)
    before = gin.config_str()
    assert configs.load(path).length == 1
    assert gin.config_str() == before
    assert not gin.config_is_locked()


def test_configurations_do_not_mix(write):
    path = write(
        "ARCHITECTURE = @toy.Branch()\ntoy.Branch.length = 1\ntoy.Branch.make_leaf = @toy.Leaf\n"
        "SIZE = 0\ntoy.Leaf.size = %SIZE"
    )
    small, large = configs.load(path, ["SIZE = 1"]), configs.load(path, ["SIZE = 100"])
    assert [small.make_leaf().size, large.make_leaf().size, small.make_leaf().size] == [1, 100, 1]


def test_a_factory_of_another_configuration_does_not_inherit_the_active_scope(write):
    path = write(
        "toy.Leaf.size = 1\ns/toy.Leaf.size = 2\nLEAF = @toy.Leaf\n"
        "ARCHITECTURE = @s/toy.together()\ntoy.together.first = 0\n"
    )
    other = configs.load(path, root="LEAF")
    inner = configs.read(path, ["toy.together.make_leaf = %LEAF"])
    assert inner.build("ARCHITECTURE")[2].size == 2
    inner.bindings[(), toy.together]["make_leaf"] = configs.configuration.Bound(other, configs.errors.Location("", 0))
    assert inner.build("ARCHITECTURE")[2].size == 1


def test_each_use_of_a_called_reference_is_a_fresh_object(write):
    path = write("ARCHITECTURE = [%LEAF, %LEAF]\nLEAF = @toy.Leaf()")
    first, second = configs.load(path)
    assert first == second and first is not second


def test_a_factory_takes_arguments_over_bindings_and_works_in_other_threads(write):
    path = write("ARCHITECTURE = @s/toy.Leaf\ns/toy.Leaf.size = 2")
    make = configs.load(path)
    found = []
    thread = threading.Thread(target=lambda: found.extend([make(), make(size=3), make(4)]))
    thread.start()
    thread.join()
    assert [leaf.size for leaf in found] == [2, 3, 4]


def test_factories_pickle_compare_hash_and_show_what_they_are(write):
    path = write("ARCHITECTURE = @s/toy.Leaf\ns/toy.Leaf.size = 2")
    make = configs.load(path)
    copy = pickle.loads(pickle.dumps(make))
    assert copy == make == configs.load(path)
    assert hash(copy) == hash(make) == hash(configs.load(path))
    assert make != configs.load(path, ["s/toy.Leaf.size = 3"])
    assert copy().size == 2
    assert make.__name__ == "Leaf"
    assert "@s/tests.configs.toy.Leaf" in repr(make)
    assert list(make.__signature__.parameters) == ["size", "colour"]


def test_containers_are_copied_for_each_use(write):
    path = write("ARCHITECTURE = [%SIZES, %SIZES]\nSIZES = [1, 2]")
    first, second = configs.load(path)
    first.append(3)
    assert second == [1, 2] and configs.load(path) == [[1, 2], [1, 2]]


def test_the_root_is_the_model_else_the_architecture_else_what_is_asked_for(write):
    path = write("ARCHITECTURE = 1\nOTHER = 3")
    assert configs.load(path) == 1
    assert configs.load(path, root="OTHER") == 3
    assert configs.load(path, ["MODEL = 2"]) == 2
    assert configs.load(path, ["NEW = 4"], root="NEW") == 4


def test_several_files_are_read_in_order(write):
    first, second = write("ARCHITECTURE = %SIZE\nSIZE = 1"), write("SIZE = 2", "second.gin")
    assert configs.load([first, second]) == 2
    assert configs.load([first, second], ["SIZE = 3"]) == 3


def test_constants_are_reached_through_imports_and_through_gin(write, clean_gin):
    path = write("ARCHITECTURE = [%toy.Colour.RED, %a_module.BLUE]")
    gin.constant("a_module.BLUE", toy.Colour.BLUE)
    assert configs.load(path) == [toy.Colour.RED, toy.Colour.BLUE]


def test_a_file_without_model_or_architecture_lists_what_it_defines(write):
    path = write("SIZE = 1\nDEPTH = 2")
    with pytest.raises(ValueError, match=r"neither MODEL nor ARCHITECTURE.*root=.*DEPTH, SIZE"):
        configs.load(path)


def test_includes_are_found_in_search_paths_first(write, tmp_path):
    write("SIZE = 1", "one/part.gin")
    write("SIZE = 2", "two/part.gin")
    path = write("include 'part.gin'\nARCHITECTURE = %SIZE")
    for folder, size in (("one", 1), ("two", 2)):
        assert configs.load(path, search_paths=[tmp_path / folder]) == size


def test_a_python_function_takes_the_parameters_bound_for_it(write):
    path = write("toy.needs_binding.steps = 5")
    configuration = configs.read(path)
    assert configuration.configured(toy.needs_binding)(rate=0.1) == (5, 0.1)
    assert "SIZE" not in configuration


def test_a_root_that_is_not_defined_is_named_with_what_is():
    with pytest.raises(
        configs.ConfigurationError, match=r"the root 'ARCHITECTUR' is not defined in .*did you mean ARCHITECTURE\?"
    ):
        configs.load("t5_1_1/tiny", root="ARCHITECTUR")
    with pytest.raises(
        configs.ConfigurationError, match="the root 'MODLE' is not .* Without a root, ARCHITECTURE is built"
    ):
        configs.load("t5_1_1/tiny", root="MODLE")
