"""Loops carry caches in the form in which they are read, so that XLA writes them in place."""

import re

import jax
import jax.numpy as jnp

from flaxformer.decoding import Greedy, generate
from tests.decoding.test_model_session import EOS, model_of

STEPS = 23  # a length that no other array has


def test_the_cache_of_one_row_is_not_copied_at_every_step():
    model, variables = model_of("encdec_v11")
    inputs = {"encoder_input_tokens": jnp.ones((1, 4), jnp.int32)}

    def run(variables):
        return generate(model, variables, inputs, strategy=Greedy(), eos_id=EOS, max_new_tokens=STEPS)

    program = jax.jit(run).lower(variables).compile().as_text()
    assert f",{STEPS}]" in program
    assert not re.findall(rf"f32\[[\d,]*{STEPS}\]\S* copy\(%get-tuple-element", program)
