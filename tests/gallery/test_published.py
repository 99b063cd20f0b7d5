"""The gallery pages of published families are the models of their gin files, and run."""

import dataclasses
import pathlib
import re
import runpy

import flax.core
import jax
import jax.numpy as jnp
import pytest

from flaxformer import configs

GALLERY = pathlib.Path(__file__).parents[2] / "architectures"
MACROS = ("NUM_LAYERS", "NUM_HEADS", "EMBED_DIM", "MLP_DIM", "NUM_EMBEDDINGS", "NUM_POSITIONS")
BART = ("NUM_ENCODER_LAYERS", "NUM_ENCODER_HEADS", "EMBED_DIM", "ENCODER_MLP_DIM", "NUM_EMBEDDINGS", "NUM_POSITIONS")
SIZES = {
    "gpt2": ("small", "124,439,808"),
    "bert": ("base", "110,106,428"),
    "bart": ("base", "139,470,681"),
}  # as published


@pytest.fixture(scope="module", params=SIZES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def page(family):
    return runpy.run_path(str(GALLERY / f"{family}.py"))


def traced(model, family):
    """Initialisation and a training pass as one program's text, and the variables it makes."""
    tokens = jnp.ones((2, 3), jnp.int32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    extra = {"gpt2": {"decoder_valid": tokens}, "bert": {"token_types": tokens}, "bart": _targets(tokens)}[family]
    program, (_, variables) = jax.make_jaxpr(lambda: model.init_with_output(keys, tokens, **extra), return_shape=True)()
    return str(program), flax.core.unfreeze(variables)


def _targets(tokens):
    return {"decoder_input_tokens": tokens, "decoder_target_tokens": tokens}


def test_the_page_computes_what_its_gin_twin_computes(page, family):
    assert traced(page[family](page["SIZES"]["tiny"]), family) == traced(configs.load(f"{family}/tiny"), family)


def test_the_sizes_of_the_page_are_those_of_the_gin_files(page, family):
    for name, size in page["SIZES"].items():
        configuration = configs.read(f"{family}/{name}")
        assert dataclasses.astuple(size) == tuple(map(configuration.build, BART if family == "bart" else MACROS))


@pytest.mark.slow
def test_the_page_runs_and_its_step_lowers_the_loss(page, family, capsys):
    published, parameters = SIZES[family]
    for name in set(page["SIZES"]) - {"tiny", published}:
        page["SIZES"].pop(name)
    page["main"]()
    printed = capsys.readouterr().out
    assert re.search(rf"{published}\s+{parameters} parameters", printed)
    before, after = map(float, re.search(r"tiny one: ([\d.]+), .*: ([\d.]+)", printed).groups())
    assert after < before
