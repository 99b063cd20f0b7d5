"""Every page of the gallery is the model of its gin files, in each of their sizes, and trains.

A field of a page's `Size` has the name of a macro: `kv_heads` is NUM_KV_HEADS, `width` is EMBED_DIM (see `WORDS`), and
`layers` is NUM_ENCODER_LAYERS as well as NUM_DECODER_LAYERS, unless there is a field `decoder_layers`. A field of a
part, such as `text.layers`, is that of the whole by both names, `text_layers`.
"""

import dataclasses
import inspect
import re
import runpy

import flax.core
import jax
import pytest

from flaxformer import configs
from tests.gallery.folders import GALLERY, PAGES, sizes

WORDS = {"embed_dim": "width", "dim": "width", "mlp_dim": "mlp_width", "embeddings": "vocabulary"}
OF_INPUTS = {"channels"}  # fields that gin files leave to what a model is given
WIRING = {"EMBEDDING_TRANSFORM"}  # macros of a size that are no numbers: the page builds what they name
PUBLISHED = {  # how many parameters
    "t5_1_1": ("base", 247_577_856),
    "bert": ("base", 110_106_428),
    "gpt2": ("small", 124_439_808),
    "bart": ("base", 139_470_681),
    "t5_1_0": ("small", 60_506_624),
    "byt5": ("small", 299_637_760),
    "mt5": ("small", 300_176_768),
    "vit": ("base", 86_567_656),
    "clip": ("base32", 151_277_313),
    "whisper": ("base", 72_593_920),
    "wav2vec2": ("base", 94_396_320),
    "wav2vec2_stable": ("large", 315_471_520),
    "pegasus": ("large", 570_797_056 + 96_103),  # its bias per token is not counted elsewhere
    "led": ("base", 161_844_480 + 50_265),
    "longt5": ("base", 247_577_856),
}
SLOW: set[str] = set()  # their training step takes long to compile


@pytest.fixture
def page(gallery, name):
    return gallery(name).PAGE


def traced(model, example):
    """Initialisation and a training pass as one program's text, and the variables it makes."""
    inputs, options = example
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    program, (_, variables) = jax.make_jaxpr(
        lambda: model.init_with_output(keys, *inputs, **options), return_shape=True
    )()
    return re.sub(r"0x[0-9a-f]+", "0x", str(program)), flax.core.unfreeze(variables)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_computes_what_its_gin_twin_computes(page, name):
    assert page.name == name
    given, bindings = choices(page)
    example = page.example(page.sizes["tiny"])
    ours, theirs = page.build(page.sizes["tiny"], **given), configs.load(f"{name}/tiny", bindings)
    assert traced(ours, example) == traced(theirs, example)


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
        size = flat(page.sizes[size_name])
        configuration = configs.read(f"{name}/{size_name}")
        bound = expected[size_name] - WIRING
        others = {macro for macro in configuration.macros if is_number(configuration.macros[macro].value)} - bound
        fields = {macro: field_of(macro, size) for macro in bound | others}
        assert {macro for macro in bound if fields[macro] is None} == set()
        named = {macro: field for macro, field in fields.items() if field is not None}
        assert {macro: size[field] for macro, field in named.items()} == {
            macro: configuration.build(macro) for macro in named
        }
        assert size.keys() - OF_INPUTS <= set(named.values())


def flat(size):
    """The numbers of a size by name, those of a part behind the part's name: `text.layers` is `text_layers`."""
    found = {}
    for name in (name for name in dir(size) if not name.startswith("_")):
        value = getattr(size, name)
        inner = flat(value) if dataclasses.is_dataclass(value) else None
        found |= {name: value} if inner is None else {f"{name}_{each}": number for each, number in inner.items()}
    return found


def field_of(macro, size):
    """The number of a size that a macro stands for, or None."""
    name = macro.lower().removeprefix("num_")
    part, _, rest = name.partition("_")
    alike = [rest] if part in ("encoder", "decoder") else []
    fields = [WORDS.get(name, name), f"{part}_{WORDS.get(rest, rest)}", *(WORDS.get(rest, rest) for rest in alike)]
    return next((field for field in fields if field in size), None)


def is_number(value):
    return all(map(is_number, value)) if isinstance(value, tuple) else isinstance(value, int | float)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_page_has_as_many_parameters_as_published(gallery, page, name):
    size, parameters = PUBLISHED[name]
    assert gallery("gallery").number_of_parameters(page, size) == parameters


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAGES])
def test_a_training_step_of_the_tiny_size_lowers_the_loss(gallery, page):
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
