"""The gallery page of T5 1.1 is the model of its gin files, and runs."""

import dataclasses
import pathlib
import re
import runpy

import flax.core
import jax
import jax.numpy as jnp
import pytest

from flaxformer import configs

PAGE = pathlib.Path(__file__).parents[2] / "architectures" / "t5_1_1.py"


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(PAGE))


def traced(model):
    """Initialisation and a training pass as one program's text, and the variables it makes."""
    tokens = jnp.ones((2, 3), jnp.int32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    program, (_, variables) = jax.make_jaxpr(
        lambda: model.init_with_output(keys, tokens, tokens, tokens), return_shape=True
    )()
    return str(program), flax.core.unfreeze(variables)


def test_the_page_computes_what_its_gin_twin_computes(page):
    ours = page["t5_1_1"](page["SIZES"]["tiny"], dropout_rate=0.1)
    assert traced(ours) == traced(configs.load("t5_1_1/tiny", ["DROPOUT_RATE = 0.1"]))


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large", "xl", "xxl"])
def test_the_sizes_of_the_page_are_those_of_the_gin_files(page, name):
    configuration = configs.read(f"t5_1_1/{name}")
    macros = ("NUM_ENCODER_LAYERS", "NUM_HEADS", "HEAD_DIM", "EMBED_DIM", "MLP_DIM", "NUM_EMBEDDINGS")
    assert dataclasses.astuple(page["SIZES"][name]) == tuple(configuration.build(macro) for macro in macros)
    assert configuration.build("NUM_DECODER_LAYERS") == configuration.build("NUM_ENCODER_LAYERS")


def test_the_page_runs_and_its_step_lowers_the_loss(page, capsys):
    page["SIZES"].pop("large"), page["SIZES"].pop("xl"), page["SIZES"].pop("xxl")
    page["main"]()
    printed = capsys.readouterr().out
    assert re.search(r"base\s+247,577,856 parameters", printed)
    before, after = map(float, re.search(r"tiny one: ([\d.]+), .*: ([\d.]+)", printed).groups())
    assert after < before
