import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from flaxformer import configs
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.scoring import takes_lazy_bias
from flaxformer.components.calling import accepts, call_part
from flaxformer.step import Step


class Recorder(nn.Module):
    """Returns what it was called with beside its input."""

    def __call__(self, x, *, step=None, enable_dropout=None):
        return {"step": step, "enable_dropout": enable_dropout}


class OlderRecorder(nn.Module):
    """As modules for google/flaxformer are called."""

    def __call__(self, x, decode=False, prefill=False, prefill_lengths=None, deterministic=None):
        return {"decode": decode, "prefill": prefill, "lengths": prefill_lengths, "deterministic": deterministic}


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


def test_part_receives_the_keywords_it_names():
    step = Step(decode=True)
    assert call_part(Recorder(), 1, step=step, enable_dropout=True, other=2) == {"step": step, "enable_dropout": True}


def test_older_part_receives_the_step_as_keywords():
    got = call_part(OlderRecorder(), 1, step=Step(prefill=True, lengths=7), enable_dropout=False)
    assert got == {"decode": False, "prefill": True, "lengths": 7, "deterministic": True}


def test_no_step_means_training():
    assert call_part(Recorder(), 1)["step"] == Step()


@pytest.mark.parametrize("part", [Plain(), nn.LayerNorm(), nn.RMSNorm()])
def test_plain_linen_module_fits(part):
    x = jnp.arange(6.0).reshape(2, 3)
    variables = part.init(jax.random.key(0), x)
    called = part.apply(variables, x, method=lambda m, x: call_part(m, x, step=Step(), enable_dropout=True))
    assert jnp.array_equal(called, part.apply(variables, x))


def test_what_a_gin_file_names_is_asked_as_the_function_it_stands_for():
    configuration = configs.read(["t5_1_1/tiny", "t5x/flash_attention"])
    attend = configuration.configured(MultiHeadDotProductAttention)().attention_fn
    assert accepts(attend, "mask") and not accepts(attend, "step")
    assert takes_lazy_bias(attend) and takes_lazy_bias(functools.partial(attend, dtype="float32"))


def test_functions_and_partials_fit():
    def function(x, step=None):
        return x, step

    step = Step(decode=True)
    assert call_part(function, 1, step=step) == (1, step)
    assert call_part(functools.partial(function, 2), step=step) == (2, step)


def test_dropout_is_active_only_when_enabled():
    dropout = nn.Dropout(0.5)
    x = jnp.ones((4, 4))

    def run(enable):
        method = functools.partial(call_part, enable_dropout=enable)
        return dropout.apply({}, x, rngs={"dropout": jax.random.key(0)}, method=lambda m, x: method(m, x))

    assert jnp.array_equal(run(False), x)
    assert not jnp.array_equal(run(True), x)


def test_accepts_looks_at_the_named_parameters():
    assert accepts(Recorder(), "step")
    assert not accepts(Recorder(), "decode")
    assert not accepts(lambda **anything: anything, "step")
