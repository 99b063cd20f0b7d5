"""The page of LongT5 has the variant with transient globals, too."""

import pytest

from flaxformer import configs
from tests.gallery.test_pages import assert_same, traced

GLOBALS = ["ENCODER_ATTENTION = %TRANSIENT_GLOBAL", "ENCODER_BIASES = @transient_global.TokenAndGlobalBiases"]


@pytest.fixture
def page(gallery):
    return gallery("longt5")


def test_the_variant_with_globals_computes_what_its_gin_twin_computes(page, gallery):
    size, length = page.SIZES["tiny"], 2 * page.SIZES["tiny"].tokens_per_block
    tokens = gallery("gallery").text(size.vocabulary, length)
    ours = page.with_globals(size, dropout_rate=0.1, dtype="float32")
    theirs = configs.load("longt5/tiny", [*GLOBALS, "DROPOUT_RATE = 0.1", "ACTIVATION_DTYPE = 'float32'"])
    example = (tokens, tokens[:, :4], tokens[:, :4]), {}
    assert_same(traced(ours, example), traced(theirs, example))
