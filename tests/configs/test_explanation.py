"""An explanation counts what the model has and does, and knows where each value comes from."""

import math
import sys

import jax
import jax.numpy as jnp
import pytest

from flaxformer import configs
from flaxformer.configs import rendering
from flaxformer.configs.flops import matmul_flops
from flaxformer.configs.inputs import parse_input
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
    assert f"{tiny.flops_per_token:,.0f} FLOPs per token for encoder_input_tokens 1 x 6, decoder_input" in text


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


MLP = ["MODEL = @flaxformer.components.dense.MlpBlock()"]


def test_a_part_is_explained_when_its_inputs_are_named():
    with pytest.raises(
        ValueError, match=r"MlpBlock is called with inputs; expected a model over tokens.*--input NAME="
    ):
        configs.explain("t5_1_1/tiny", MLP)
    explained = configs.explain("t5_1_1/tiny", MLP, inputs={"inputs": (1, 3, 16)})
    assert explained.flops == 3 * 2 * 3 * 16 * 64  # wi_0, wi_1 and wo of three vectors
    with pytest.raises(ValueError, match=r"inputs name images, which MlpBlock does not take; expected some of inputs,"):
        configs.explain("t5_1_1/tiny", MLP, inputs={"images": (1, 3, 16)})


IMAGE = (1, 8, 12, 3)
READS = {  # each of one example
    "vit": {"images": IMAGE},
    "clip": {"tokens": (1, 77), "images": IMAGE},
    "wav2vec2": {"wave": (1, (512 - 1) * 8 + 20)},  # 512 frames
    "whisper": {
        "encoder_input_tokens": (1, 24, 80),
        "decoder_input_tokens": (1, 16),
        "decoder_target_tokens": (1, 16),
    },
}


@pytest.mark.parametrize("family", READS)
def test_models_that_read_no_tokens_say_what_they_read(family):
    explained = configs.explain(f"{family}/tiny")
    assert {name: each.shape for name, each in explained.inputs.items()} == READS[family]
    assert explained.tokens is None and explained.flops > 0
    shown = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in READS[family].items())
    assert f"{explained.flops:,} FLOPs for {shown} (products" in rendering.render(explained)
    with pytest.raises(ValueError, match=rf"asked of {explained.model}, which reads .*; expected a model over tokens"):
        _ = explained.flops_per_token


def test_flops_of_images_are_those_of_the_formula():
    patches, length, width, mlp, layers = 6, 7, 32, 64, 2
    layer = length * (4 * width * width + 2 * length * width + 2 * width * mlp)
    expected = 2 * (patches * 4 * 4 * 3 * width + layers * layer + width * 1000)
    assert configs.explain("vit/tiny").flops == expected


def test_inputs_replace_what_the_model_says():
    explained = configs.explain("clip/tiny", inputs={"tokens": (5, 7)}, length=9)
    assert {name: (each.shape, str(each.dtype)) for name, each in explained.inputs.items()} == {
        "tokens": ((5, 7), "int32"),
        "images": (IMAGE, "float32"),
    }
    images = jax.ShapeDtypeStruct((2, *IMAGE[1:]), jnp.bfloat16)
    assert configs.explain("vit/tiny", inputs={"images": images}).inputs == {"images": images}
    with pytest.raises(ValueError, match=r"images have shape \(1, 8, 12, 4\); expected \[batch, 8, 12, 3\]"):
        configs.explain("vit/tiny", inputs={"images": (1, 8, 12, 4)})


def test_tokens_are_no_more_than_there_are_positions_unless_told():
    assert configs.explain("led/tiny").inputs["encoder_input_tokens"].shape == (1, 64)
    assert configs.explain("t5_1_1/tiny").tokens == 2 * 512
    with pytest.raises(ValueError, match=r"65 tokens; expected at most 64, the rows of its position table"):
        configs.explain("led/tiny", length=65)


def test_inputs_are_read_from_text():
    assert parse_input("images=1x224x224x3") == ("images", (1, 224, 224, 3))
    assert parse_input("tokens=1x77:int32") == ("tokens", jax.ShapeDtypeStruct((1, 77), jnp.int32))
    for text in ("images", "images=", "images=1,2", "images=1x2:"):
        with pytest.raises(ValueError, match=r"the input .* is not understood; expected NAME=SHAPE"):
            parse_input(text)
    with pytest.raises(ValueError, match=r"is of type 'pixels'; expected one of JAX"):
        parse_input("images=1x2:pixels")


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
