"""Every shipped T5 file builds the published model: its parameters counted exactly."""

import gin
import jax
import jax.numpy as jnp
import pytest

from flaxformer import configs
from flaxformer.architectures.repeat import stack_layer_params
from flaxformer.configs.explanation import parameter_table

# Measured on the published configurations: parameters, arrays.
PUBLISHED = {
    "t5_1_0/small": (60_506_624, 131),
    "t5_1_0/base": (222_903_552, 257),
    "t5_1_0/large": (737_668_096, 509),
    "t5_1_0/3B": (2_851_598_336, 509),
    "t5_1_0/11B": (11_307_321_344, 509),
    "t5_1_1/small": (76_961_152, 190),
    "t5_1_1/base": (247_577_856, 282),
    "t5_1_1/large": (783_150_080, 558),
    "t5_1_1/xl": (2_849_757_184, 558),
    "t5_1_1/xxl": (11_135_332_352, 558),
    "mt5/small": (300_176_768, 190),
    "mt5/base": (582_401_280, 282),
    "mt5/large": (1_229_581_312, 558),
    "mt5/xl": (3_742_619_648, 558),
    "mt5/xxl": (12_921_057_280, 558),
    "byt5/small": (299_637_760, 170),
    "byt5/base": (581_653_248, 252),
    "byt5/large": (1_228_183_552, 498),
    "byt5/xl": (3_737_801_728, 498),
    "byt5/xxl": (12_906_899_328, 498),
}
FAMILIES = ("byt5", "mt5", "t5_1_0", "t5_1_1", "umt5")
T5_1_1_SHAPES = {"small": (8, 6, 512), "base": (12, 12, 768), "xl": (24, 32, 2048), "xxl": (24, 64, 4096)}


def abstract_variables(model):
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))


def counted(variables):
    table = list(parameter_table(variables))
    assert {parameter.dtype for parameter in table} == {"float32"}
    assert all(parameter.axes and len(parameter.axes) == len(parameter.shape) for parameter in table)
    return sum(parameter.size for parameter in table), len(table)


def by_cost(names):
    """Small and base sizes always, the deeper ones with the slow tests."""
    return [
        pytest.param(name, marks=() if name.split("/")[1] in ("tiny", "small", "base") else pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("name", by_cost(PUBLISHED))
def test_published_sizes_have_their_published_number_of_parameters(name):
    assert counted(abstract_variables(configs.load(name))) == PUBLISHED[name]


@pytest.mark.parametrize("name", by_cost(f"umt5/{size}" for size in T5_1_1_SHAPES))
def test_umt5_is_t5_1_1_with_a_large_vocabulary_and_a_relative_bias_per_layer(name):
    size = name.split("/")[1]
    layers, heads, width = T5_1_1_SHAPES[size]
    parameters, arrays = PUBLISHED[f"t5_1_1/{size}"]
    vocabulary = 2 * (256_384 - 32_128) * width
    more_biases = 2 * layers - 2
    expected = parameters + vocabulary + more_biases * 32 * heads, arrays + more_biases
    assert counted(abstract_variables(configs.load(name))) == expected


@pytest.mark.parametrize("name", by_cost(f"t5x/models/{name}" for name in ("t5_small", "byt5_small", "mt5_xxl")))
def test_model_files_hold_the_published_module(name):
    family, _, size = name.rpartition("/")[2].rpartition("_")
    module = configs.load(name).module
    assert counted(abstract_variables(module)) == PUBLISHED[f"{'t5_1_0' if family == 't5' else family}/{size}"]


def test_scanned_layers_are_one_include_away():
    model = configs.load(["umt5/tiny", "t5_1_1/scanned"])
    stacked = jax.eval_shape(lambda: stack_layer_params(abstract_params(configs.load("umt5/tiny"))))
    variables = abstract_variables(model)
    assert model.scan_layers
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, stacked)


def abstract_params(model):
    return jax.tree.map(lambda x: jnp.zeros(x.shape), abstract_variables(model)["params"])


def test_every_family_has_its_parts_and_a_tiny_size():
    names = configs.shipped()
    assert {f"{family}/{file}" for family in FAMILIES for file in ("parts", "tiny")} <= set(names)
    assert set(PUBLISHED) <= set(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_computes_exactly_what_gin_builds(family, clean_gin, monkeypatch):
    monkeypatch.chdir(configs.folder())
    gin.parse_config_files_and_bindings([f"{family}/tiny.gin"], ["DROPOUT_RATE = 0.1"], finalize_config=False)
    theirs = gin.query_parameter("ARCHITECTURE/gin.macro.value").scoped_configurable_fn()
    ours = configs.load(f"{family}/tiny", ["DROPOUT_RATE = 0.1"])
    assert abstract_variables(ours) == abstract_variables(theirs)
    assert traced(ours) == traced(theirs)


def traced(model):
    """The program of a training forward pass, initialisation included, as text."""
    tokens = jnp.ones((2, 3), jnp.int32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return str(jax.make_jaxpr(lambda: model.init_with_output(keys, tokens, tokens, tokens))())


def test_override_of_a_macro_reaches_every_part():
    model = configs.load("t5_1_1/tiny", ["DROPOUT_RATE = 0.25", "ACTIVATION_DTYPE = 'float32'", "NUM_HEADS = 2"])
    decoder = model.decoder_factory(shared_token_embedder=model.shared_token_embedder_factory())
    layer = decoder.layer_factory(shared_relative_position_bias=None)
    assert decoder.dropout_factory().rate == layer.self_attention.dropout_rate == 0.25
    assert layer.mlp.intermediate_dropout_rate == 0.25
    assert layer.self_attention.num_heads == 2 and decoder.shared_relative_position_bias_factory().num_heads == 2
    assert layer.mlp.dtype == model.dtype == "float32"
    assert not model.shared_token_embedder_factory().one_hot


def test_parts_alone_name_the_sizes_that_are_missing():
    with pytest.raises(
        ValueError, match=r"required and not bound: .*NUM_HEADS \(declared at .*parts\.gin:\d+; it is used by "
    ):
        configs.load("t5_1_1/parts")
