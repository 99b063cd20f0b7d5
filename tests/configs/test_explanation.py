"""An explanation counts what the model has and does, and knows where each value comes from."""

import math
import sys

import jax
import jax.numpy as jnp
import pytest

from flaxformer import configs
from flaxformer.configs import rendering
from flaxformer.configs.flops import matmul_flops
from flaxformer.configs.values import brief

LENGTH = 6


@pytest.fixture(scope="module")
def tiny():
    return configs.explain("t5_1_1/tiny", ["DROPOUT_RATE = 0.1", "NUM_HEADS = 2", "NUM_HEADS = 4"], length=LENGTH)


def test_parameters_have_their_shapes_axes_and_totals(tiny):
    table = {parameter.name: parameter for parameter in tiny.parameters}
    wi = table["encoder/layers_1/mlp/wi_0/kernel"]
    assert (wi.shape, wi.axes, wi.dtype, wi.size, wi.bytes) == ((32, 64), ("embed", "mlp"), "float32", 2048, 8192)
    assert tiny.size == sum(math.prod(parameter.shape) for parameter in tiny.parameters)
    assert tiny.bytes == 4 * tiny.size
    assert (tiny.root, tiny.model) == ("ARCHITECTURE", "EncoderDecoder")


def test_flops_are_those_of_the_formula(tiny):
    width, inner, mlp, vocabulary, layers = 32, 4 * 8, 64, 512, 2
    attention = 4 * width * inner + 2 * LENGTH * inner
    encoder_layer = attention + 3 * width * mlp
    decoder_layer = 2 * attention + 3 * width * mlp
    per_position = layers * (encoder_layer + decoder_layer) + width * vocabulary
    assert tiny.flops == 2 * LENGTH * per_position
    assert tiny.flops_per_token == tiny.flops / (2 * LENGTH)


def test_bindings_say_which_line_won_and_which_it_replaced(tiny):
    found = {binding.name: binding for binding in tiny.bindings}
    heads = found["NUM_HEADS"]
    assert (heads.value, str(heads.location), str(heads.replaced[0])) == ("4", "bindings:3", "bindings:2")
    assert [place.file.rsplit("/", 1)[-1] for place in heads.replaced[1:]] == ["tiny.gin", "parts.gin"]
    assert found["t5_architecture.EncoderLayer.mlp"].value == "@dense.MlpBlock()"
    assert found["output_logits/dense.DenseGeneral.features"].value == "%NUM_EMBEDDINGS"


def test_plain_text_folds_equal_layers_and_names_shipped_files(tiny):
    text = rendering.render(tiny)
    assert "encoder/layers_*/mlp/wi_0/kernel" in text and "layers_0" not in text
    assert "t5_1_1/tiny.gin:5, t5_1_1/parts.gin:" in text
    assert f"{tiny.size:,} parameters in {len(tiny.parameters)} arrays" in text
    assert f"{tiny.flops_per_token:,.0f} FLOPs per token" in text


def test_a_terminal_gets_tables_and_without_rich_plain_text(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rendering.show(tiny)
    assert "┏━━" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    rendering.show(tiny)
    assert capsys.readouterr().out == rendering.render(tiny) + "\n"


def test_a_root_that_takes_no_tokens_is_refused():
    with pytest.raises(ValueError, match=r"DROPOUT_RATE is a float; expected a Linen module"):
        configs.explain("t5_1_1/tiny", root="DROPOUT_RATE")
    with pytest.raises(ValueError, match=r"MlpBlock is called with inputs; expected a model over tokens"):
        configs.explain("t5_1_1/tiny", ["MODEL = @flaxformer.components.dense.MlpBlock()"])


def test_a_model_that_cannot_be_initialised_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"EncoderDecoder .* cannot be initialised: TypeError: .* of another type"):
        configs.explain("t5_1_1/tiny", ["MLP_DIM = 'wide'"])


def test_flops_count_scans_by_their_length_branches_by_the_costliest_and_convolutions():
    x = jnp.ones((4, 4))
    product = 2 * 4**3

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def convolved(x):
        return jax.lax.conv(x[None, None], jnp.ones((3, 1, 2, 2)), (1, 1), "VALID")

    assert matmul_flops(jax.make_jaxpr(scanned)(x)) == 5 * product
    assert matmul_flops(jax.make_jaxpr(branched)(x)) == 2 * product
    assert matmul_flops(jax.make_jaxpr(convolved)(x)) == 2 * (3 * 3 * 3) * (2 * 2)
    assert matmul_flops(jax.make_jaxpr(jax.remat(jax.jit(jnp.dot)))(x, x)) == product


def test_brief_text_is_gin_text_with_short_names(write):
    configuration = configs.read(write("A = [@s/toy.Leaf(), (%B,), {'k': @toy.Leaf}, 'text']\nB = 1"))
    assert brief(configuration.macros["A"].value) == "[@s/toy.Leaf(), (%B,), {'k': @toy.Leaf}, 'text']"
