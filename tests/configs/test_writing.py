"""A configuration written out means the same as the files it came from."""

import gin

from flaxformer import configs
from tests.configs import toy
from tests.configs.test_loading import described


def test_what_is_written_builds_the_same_for_us_and_for_gin(write, clean_gin):
    original = configs.read(write(toy.EVERYTHING, header=""), ["SIZE = 4"])
    path = write(configs.write(original), "written.gin", header="")
    expected = described(original.build("ARCHITECTURE"))
    assert described(configs.load(path)) == expected
    gin.parse_config_file(path)
    assert described(gin.query_parameter("ARCHITECTURE/gin.macro.value").scoped_configurable_fn()) == expected


def test_required_names_and_constants_survive_writing(write):
    original = configs.read(write("A = %gin.REQUIRED\nARCHITECTURE = [%toy.Colour.RED, (), (1,)]"))
    copy = configs.read(write(configs.write(original), "written.gin", header=""), ["A = 1"])
    assert copy.build("ARCHITECTURE") == [toy.Colour.RED, (), (1,)]
    assert copy.build("A") == 1
