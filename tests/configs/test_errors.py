"""Whatever is wrong in a configuration is said with the place, and with what was probably meant."""

import pytest

from flaxformer import configs
from flaxformer.configs.values import Macro
from tests.configs import toy

GOOD = "ARCHITECTURE = @toy.Branch()\ntoy.Branch.length = %DEPTH\ntoy.Branch.leaf = @toy.Leaf()\nDEPTH = 1\n"


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("DETPH = 2", r"bindings:1: DETPH would change nothing.*did you mean DEPTH\?"),
        ("toy.Branch.lenght = 2", r"bindings:1: toy\.Branch has no parameter 'lenght'; did you mean length\?.*leaf"),
        ("toy.Braanch.length = 2", r"bindings:1: tests\.configs\.toy has no 'Braanch'; did you mean Branch"),
        ("Lef.size = 2", r"'Lef' is not known: 'Lef' is not imported; did you mean Leaf\?"),
        ("toi.Leaf.size = 2", r"'toi\.Leaf' is not known: 'toi' is not imported; did you mean toy\.Leaf"),
        ("toy.Branch.leaf = @toy.Leeaf()", r"bindings:1: tests\.configs\.toy has no 'Leeaf'; did you mean Leaf"),
        ("toy.Branch.leaf = %toy.Colour.GREY", r"tests\.configs\.toy\.Colour has no 'GREY'"),
        ("toy.Branch.leaf = @toy.not_callable", r"'toy\.not_callable' is a int; expected a function or class"),
        ("toy.Branch.leaf = %DEPHT", r"macro DEPHT is not defined; did you mean DEPTH\? It is used by toy\.Branch\.le"),
        ("DEPTH = %gin.REQUIRED", r"bound: DEPTH \(declared at bindings:1; it is used by toy\.Branch"),
        ("DEPTH = %gin.REQUIRED", r"Bind each, for example with --gin\.DEPTH=VALUE"),
        ("toy.Leaf.size = %gin.REQUIRED", r"required and not bound: toy\.Leaf\.size \(declared at bindings:1;"),
        ("DEPTH = 1 2", r"bindings:1: this is not gin \(Expected newline\.\)"),
        ("DEPTH = [1", r"bindings: the text ends inside a value or block"),
        ("DEPTH", r"bindings:1: this is not gin"),
        ("import no_such_module", r"bindings:1: cannot import 'no_such_module'"),
        ("include 'no_such_file.gin'", r"bindings:1: no gin file 'no_such_file\.gin'; looked for .*no_such_file\.gin"),
    ],
)  # fmt: skip
def test_wrong_bindings_are_refused(write, binding, message):
    with pytest.raises(configs.ConfigurationError, match=message):
        configs.load(write(GOOD), [binding])


def test_the_place_of_a_mistake_in_an_included_file_is_its_own_line(write):
    part = write("\n\ntoy.Leaf.syze = 1", "part.gin")
    path = write(f"include {part!r}")
    with pytest.raises(ValueError, match=r"file\.gin:5: .*part\.gin:7: toy\.Leaf has no parameter 'syze'"):
        configs.load(path)


def test_a_shipped_name_that_is_nearly_right_is_suggested():
    with pytest.raises(ValueError, match=r"no gin file 't5_1_1/smalll'; looked for .*did you mean t5_1_1/small"):
        configs.load("t5_1_1/smalll")


def test_files_that_include_each_other_are_refused(write):
    first = write("", "first.gin")
    second = write(f"include {first!r}", "second.gin")
    write(f"include {second!r}", "first.gin")
    with pytest.raises(ValueError, match=r"includes itself: .*first\.gin -> .*second\.gin -> .*first\.gin"):
        configs.load(first)


def test_ambiguous_short_names_list_the_full_ones(write):
    text = "import collections\nfrom tests.configs import other\nARCHITECTURE = [@toy.Leaf(), @other.Leaf()]"
    with pytest.raises(ValueError, match=r"'Leaf' is ambiguous; write one of .*other\.Leaf, .*toy\.Leaf"):
        configs.load(write(text), ["Leaf.size = 1"])


def test_a_missing_argument_is_named(write):
    path = write("ARCHITECTURE = @s/toy.Branch()\nNEEDS = @toy.needs_binding()\nOTHER = @toy.Branch")
    with pytest.raises(ValueError, match=r"s/toy\.Branch needs length; .*s/toy\.Branch\.length = VALUE"):
        configs.load(path)
    with pytest.raises(ValueError, match=r"toy\.needs_binding needs steps"):
        configs.load(path, root="NEEDS")
    assert configs.load(path, root="OTHER")(1).length == 1


def test_a_failure_inside_what_is_called_notes_the_binding(write):
    path = write("ARCHITECTURE = @toy.anything()\ntoy.anything.twig = @toy.Branch()\ntoy.Branch.length = @toy.fails()")
    with pytest.raises(ZeroDivisionError) as caught:
        configs.load(path)
    assert any("@tests.configs.toy.Branch()" in note for note in caught.value.__notes__) is False
    assert any("@tests.configs.toy.fails()" in note for note in caught.value.__notes__)


def test_required_values_are_refused_when_evaluated_unchecked(write):
    configuration = configs.read(write("SIZES = [%gin.REQUIRED]\nDEPTH = %gin.REQUIRED"))
    with pytest.raises(ValueError, match="still %gin.REQUIRED"):
        configuration.evaluate(configuration.macros["SIZES"].value)
    with pytest.raises(ValueError, match=r"required and not bound: DEPTH \(declared at .*file\.gin:6"):
        configuration.evaluate([Macro("DEPTH")])


def test_a_function_to_configure_is_checked_before_it_is_called(write):
    configuration = configs.read(write("toy.needs_binding.steps = %STEPS\nSTEPS = %gin.REQUIRED"))
    with pytest.raises(ValueError, match=r"STEPS \(declared at .*; it is used by toy\.needs_binding\.steps"):
        configuration.configured(toy.needs_binding)


def test_what_is_not_reached_may_stay_required(write):
    assert configs.load(write(GOOD + "MODEL_DIR = %gin.REQUIRED")) == toy.Branch(1, toy.Leaf())
