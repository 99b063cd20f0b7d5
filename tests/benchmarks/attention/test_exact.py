import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention import exact
from benchmarks.attention.contenders import DEFINITION, ITSELF, Function, Layer, attend_linen, kernel
from benchmarks.attention.workload import Workload

SMALL = {"length": 11, "heads": 4, "kv_heads": 2, "head_dim": 8}


def computed(contender, workload):
    arrays = workload.arrays()
    run = exact.run(lambda learned, given: contender.attend(workload, learned, given), workload)
    return jax.jit(run)(*contender.inputs(workload, arrays), jnp.asarray(arrays["cotangent"]))


@pytest.mark.parametrize(("mask", "bias"), [("segments:2", "t5"), ("window:4", "array"), ("none", "alibi")])
def test_slices_of_queries_make_up_the_definition(mask, bias, monkeypatch):
    monkeypatch.setattr(exact, "SLICE", 4)
    workload = Workload("backward", mask=mask, bias=bias, **SMALL)
    found = exact.outcome(workload, None, DEFINITION, workload.arrays())
    assert set(found) == {"output", "query", "key", "value"} | ({"bias"} if bias != "alibi" else set())
    assert found["output"].dtype == np.float64
    assert found["output"].shape == (1, 11, 2, 8) and found["key"].shape == (1, 11, 1, 8)
    assert exact.error(computed(kernel("reference"), workload), found) < 1e-5


def test_a_wrong_gradient_is_an_error():
    workload = Workload("backward", bias="t5", **SMALL)
    found = exact.outcome(workload, None, DEFINITION, workload.arrays())
    good = jax.tree.map(np.asarray, computed(kernel("reference"), workload))
    assert exact.error(good, found) < 1e-5
    assert exact.error(good | {"bias": jax.tree.map(lambda x: 1.1 * x, good["bias"])}, found) == pytest.approx(
        0.1, 1e-3
    )
    assert exact.error(good | {"output": 0 * good["output"]}, found) == 1.0


def test_a_variant_is_compared_with_itself():
    def halved(query, key, value, *, mask, bias):
        return 0.5 * attend_linen(query, key, value, mask=mask, bias=bias)

    variant, workload = Function("halved", halved, ITSELF), Workload("forward", **SMALL)
    found = exact.outcome(workload, variant, ITSELF, workload.arrays())
    assert found["output"].shape == (1, 11, 4, 8) and found["output"].dtype == np.float64
    assert exact.error(computed(variant, workload), found) < 1e-6


def test_no_error_is_taken_where_it_says_nothing_or_costs_too_much(monkeypatch):
    workload = Workload("forward", **SMALL)
    assert exact.outcome(workload, Layer("layer", None), None, workload.arrays()) is None
    monkeypatch.setattr(exact, "MOST_SCORES", 10)
    assert exact.outcome(workload, Function("linen", attend_linen, ITSELF), ITSELF, workload.arrays()) is None


def test_a_variant_that_refuses_float64_has_no_error():
    def refuse(query, key, value, *, mask, bias):
        raise TypeError("float32 only")

    workload = Workload("forward", **SMALL)
    assert exact.outcome(workload, Function("refuse", refuse, ITSELF), ITSELF, workload.arrays()) is None
