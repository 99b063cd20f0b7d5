import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.training import schedules
from tests.training import recorded

RECORDED = recorded.load("runtime_lr_schedules")


@pytest.mark.parametrize("name", RECORDED.about["call"])
def test_products_of_factors_are_those_recorded(name):
    schedule = schedules.create_learning_rate_scheduler(**RECORDED.about["call"][name])
    actual = [schedule(step) for step in RECORDED.inputs["steps"]]
    np.testing.assert_allclose(actual, RECORDED.outputs[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.create_learning_rate_scheduler(),
        schedules.rsqrt_with_warmup(0.1, 10),
        schedules.noam(512),
        schedules.cosine_with_warmup(0.1, 10, 100),
    ],
)
def test_a_rate_is_a_float32_scalar_also_under_jit(schedule):
    for rate in (schedule(7), jax.jit(schedule)(jnp.int32(7))):
        assert rate.shape == () and rate.dtype == jnp.float32
        np.testing.assert_allclose(rate, schedule(jnp.int32(7)), rtol=1e-6)


def test_noam_is_the_formula_of_the_paper():
    schedule = schedules.noam(512, warmup_steps=400, scale=2.0)
    for step in (1, 10, 400, 5000):
        expected = 2.0 * 512**-0.5 * min(step**-0.5, step * 400**-1.5)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_cosine_ends_at_its_end():
    schedule = schedules.cosine_with_warmup(1.0, 10, 110, end=0.25)
    np.testing.assert_allclose([schedule(0), schedule(10), schedule(110), schedule(999)], [0, 1, 0.25, 0.25])


def test_no_warmup_starts_at_the_peak():
    np.testing.assert_allclose(schedules.cosine_with_warmup(1.0, 0, 10)(0), 1.0)


def test_no_warmup_is_finite_from_the_first_step():
    schedule = schedules.create_learning_rate_scheduler("constant * linear_warmup * rsqrt_decay", 1.0, warmup_steps=0)
    np.testing.assert_allclose([schedule(0), schedule(4)], [1.0, 0.5])


def test_unknown_factors_are_named_when_the_schedule_is_made():
    with pytest.raises(ValueError, match="factors names 'rsqrt'; expected one of constant, linear_warmup"):
        schedules.create_learning_rate_scheduler("constant * rsqrt")


def test_impossible_lengths_are_named():
    with pytest.raises(ValueError, match="steps is 10; expected more than warmup_steps, 10"):
        schedules.cosine_with_warmup(1.0, 10, 10)
    with pytest.raises(ValueError, match="warmup_steps is 0; expected at least 1"):
        schedules.rsqrt_with_warmup(1.0, 0)
    with pytest.raises(ValueError, match="width is 0; expected at least 1"):
        schedules.noam(0)
