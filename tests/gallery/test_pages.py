"""Every page of the gallery is the model of its gin files, in each of their sizes, and trains.

A field of a page's `Size` has the name of a macro: `kv_heads` is NUM_KV_HEADS, `width` is EMBED_DIM (see `WORDS`), and
`layers` is NUM_ENCODER_LAYERS as well as NUM_DECODER_LAYERS, unless there is a field `decoder_layers`. A field of a
part, such as `text.layers`, is that of the whole by both names, `text_layers`.
"""

import dataclasses
import inspect
import itertools
import re
import runpy
from typing import NamedTuple

import flax.core
import flax.linen as nn
import jax
import pytest

from flaxformer import configs
from flaxformer.components.logits import TiedLogits
from flaxformer.configs.values import Macro
from tests.gallery.folders import GALLERY, PAGES, families, sizes

WORDS = {
    "embed_dim": "width",
    "dim": "width",
    "mlp_dim": "mlp_width",
    "token_dim": "token_width",
    "embeddings": "vocabulary",
}
NAMES = {  # macros that name a part, the field they stand for, and when that is true
    "OUTPUT_LOGITS": ("tied", TiedLogits),
    "EMBEDDING_TRANSFORM": ("projected", nn.Sequential),
}
PUBLISHED = {  # how many parameters, those of the heads included
    "albert": ("base", 11_813_810),
    "bart": ("base", 139_470_681),
    "bert": ("base", 110_106_428),
    "big_bird": ("base", 128_112_824),
    "byt5": ("small", 299_637_760),
    "bloom": ("560M", 559_214_592),
    "clip": ("base32", 151_277_313),
    "deberta": ("v3_base", 184_551_780),
    "distilbert": ("base", 66_985_530),
    "electra": ("base", 109_483_009),
    "falcon": ("7B", 6_921_720_704),
    "gemma": ("2B", 2_506_172_416),
    "gemma2": ("2B", 2_614_341_888),
    "gemma3": ("1B", 999_885_952),
    "gpt2": ("small", 124_439_808),
    "gpt_neox": ("pythia_160M", 162_322_944),
    "led": ("base", 161_844_480 + 50_265),
    "llama": ("3.2_1B", 1_235_814_400),
    "longformer": ("base", 148_711_257),
    "longt5": ("base", 247_577_856),
    "mbart": ("large", 610_851_840 + 250_027),
    "mistral": ("7B", 7_241_732_096),
    "mixtral": ("8x7B", 46_702_792_704),
    "mt5": ("small", 300_176_768),
    "opt": ("125M", 125_239_296),
    "pegasus": ("large", 570_797_056 + 96_103),  # its bias per token is not counted elsewhere
    "phi": ("2", 2_779_683_840),
    "qwen2": ("0.5B", 494_032_768),
    "qwen3": ("0.6B", 596_049_920),
    "roberta": ("base", 124_697_433),
    "t5_1_0": ("small", 60_506_624),
    "t5_1_1": ("base", 247_577_856),
    "vit": ("base", 86_567_656),
    "wav2vec2": ("base", 94_396_320),
    "wav2vec2_stable": ("large", 315_471_520),
    "whisper": ("base", 72_593_920),
}


# Operation by operation, and in a few seconds; the others are slow tests.
QUICK = ["gpt2"]


@pytest.fixture
def page(gallery, name):
    return gallery(name).PAGE


def test_every_family_of_gin_files_has_a_page_and_every_page_a_family():
    assert families() == PAGES


class Traced(NamedTuple):
    """Initialisation and a training pass: the lines of one program, and the variables it makes."""

    program: list[str]
    variables: dict


def traced(model, example):
    inputs, options = example
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    program, (_, variables) = jax.make_jaxpr(
        lambda: model.init_with_output(keys, *inputs, **options), return_shape=True
    )()
    return Traced(re.sub(r"0x[0-9a-f]+", "0x", str(program)).splitlines(), flax.core.unfreeze(variables))


def assert_same(ours, theirs):
    lines = itertools.zip_longest(ours.program, theirs.program)
    first_difference = next((pair for pair in lines if pair[0] != pair[1]), None)
    assert first_difference is None  # pytest would take minutes to compare the whole texts
    assert ours.variables == theirs.variables


@pytest.mark.parametrize("name", PAGES)
def test_a_page_computes_what_its_gin_twin_computes(page, name):
    assert page.name == name
    given, bindings = choices(page)
    example = page.example(page.sizes["tiny"])
    ours, theirs = page.build(page.sizes["tiny"], **given), configs.load(f"{name}/tiny", bindings)
    assert_same(traced(ours, example), traced(theirs, example))


def choices(page):
    """Other values than the usual ones for `dtype` and `dropout_rate`, as the page and as its gin twin take them."""
    configuration = configs.read(f"{page.name}/tiny")
    usual = {name: each.default for name, each in inspect.signature(page.build).parameters.items()}
    assert usual["dtype"] == configuration.build("ACTIVATION_DTYPE")
    dtype = "float32" if usual["dtype"] == "bfloat16" else "bfloat16"
    given, bindings = {"dtype": dtype}, [f"ACTIVATION_DTYPE = '{dtype}'"]
    if "dropout_rate" in usual:
        rates = {name: configuration.build(name) for name in configuration.macros if name.endswith("DROPOUT_RATE")}
        assert usual["dropout_rate"] == rates["DROPOUT_RATE"]
        given["dropout_rate"] = 0.25
        bindings += [f"{name} = 0.25" for name, rate in rates.items() if rate == usual["dropout_rate"]]
    return given, bindings


@pytest.mark.parametrize("name", PAGES)
def test_the_sizes_of_a_page_are_those_of_its_gin_files(page, name):
    expected = sizes(name)
    assert set(page.sizes) == set(expected) and next(iter(page.sizes)) == "tiny"
    for size_name in page.sizes:
        size, configuration = flat(page.sizes[size_name]), configs.read(f"{name}/{size_name}")
        plain = {macro for macro, bound in configuration.macros.items() if is_plain(bound.value, configuration)}
        fields = {macro: field_of(macro, size) for macro in expected[size_name] | plain | NAMES.keys()}
        assert {macro for macro in expected[size_name] if fields[macro] is None} == set()
        named = {macro: field for macro, field in fields.items() if field and macro in configuration}
        assert {macro: size[field] for macro, field in named.items()} == {
            macro: value_of(macro, configuration) for macro in named
        }
        assert size.keys() <= set(named.values())


def flat(size):
    """The numbers of a size by name, those of a part behind the part's name: `text.layers` is `text_layers`."""
    found = {}
    for name in (name for name in dir(size) if not name.startswith("_")):
        value = getattr(size, name)
        inner = flat(value) if type(value).__module__ in PAGES else None
        found |= {name: value} if inner is None else {f"{name}_{each}": number for each, number in inner.items()}
    return found


def field_of(macro, size):
    """The number of a size that a macro stands for, or None."""
    name = macro.lower().removeprefix("num_")
    part, _, rest = name.partition("_")
    alike = [rest] if part in ("encoder", "decoder") else []
    fields = [WORDS.get(name, name), f"{part}_{WORDS.get(rest, rest)}", *(WORDS.get(rest, rest) for rest in alike)]
    fields = [NAMES[macro][0]] if macro in NAMES else fields
    return next((field for field in fields if field in size), None)


def value_of(macro, configuration):
    value = configuration.build(macro)
    return value.reference.target is NAMES[macro][1] if macro in NAMES else value


def is_plain(value, configuration):
    """Whether a macro's value is made of numbers and names, or is that of such a macro."""
    if isinstance(value, Macro):
        return is_plain(configuration.macro(value.name).value, configuration)
    if isinstance(value, tuple):
        return all(is_plain(each, configuration) for each in value)
    return isinstance(value, int | float | str | None)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (PUBLISHED[name][1] > 15 * 10**7)) for name in PUBLISHED]
)
def test_a_page_has_as_many_parameters_as_published(gallery, page, name):
    size, parameters = PUBLISHED[name]
    assert gallery("gallery").number_of_parameters(page, size) == parameters


@pytest.mark.parametrize("name", QUICK)
def test_a_training_step_of_the_tiny_size_lowers_the_loss(gallery, page):
    before, after = gallery("gallery").losses(page, compiled=lambda function: function)
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_compiled_training_step_lowers_the_loss(gallery, page):
    before, after = gallery("gallery").losses(page)
    assert after < before


def test_running_a_page_prints_its_sizes_and_its_losses(gallery, capsys):
    page = gallery("gpt2").PAGE
    gallery("gallery").show(dataclasses.replace(page, sizes={name: page.sizes[name] for name in ("tiny", "small")}))
    printed = capsys.readouterr().out
    assert re.search(r"^small\s+124,439,808 parameters$", printed, flags=re.MULTILINE)
    assert re.search(r"^loss of the tiny one: \d\.\d+, and after one training step: \d\.\d+$", printed, re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_run_as_a_script_shows_itself(gallery, name, monkeypatch):
    shown = []
    monkeypatch.setattr(gallery("gallery"), "show", shown.append)
    runpy.run_path(str(GALLERY / f"{name}.py"), run_name="__main__")
    assert [page.name for page in shown] == [name]
