"""Every kernel of the table does what the table says: values and gradients, against the definition in float64."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import backends, masks
from flaxformer.components.attention.kernels import biases, request
from flaxformer.components.attention.kernels.reference import attend_reference
from flaxformer.components.attention.kernels.relative_keys import RelativeKeys
from tests.components.attention.kernels.cases import normal, widen
from tests.components.attention.kernels.stand_ins import runnable

B, N, K, H = 2, 2, 1, 16
WHOLE = {"pallas_gpu", "flash_tpu", "splash"}  # they want lengths that are multiples of 128
LENGTHS = np.array([0, 21])  # the first row of the batch sees nothing


def segments(length):
    ids = np.arange(length)[None] // 13 * np.ones((B, 1), int)
    return masks.Segments(ids, ids)


def at_positions(length):
    """Every second one: a window of offsets would reach twice as far."""
    return np.arange(length)[None] * 2, np.arange(length)[None] * 2


# feature -> a request that needs it; arrays under "given" get gradients
REQUESTS = {
    "causal mask": lambda length: {"mask": masks.Causal()},
    "window mask": lambda length: {"mask": masks.Window(5, 3)},
    "segment mask": lambda length: {"mask": segments(length)},
    "key lengths": lambda length: {"mask": masks.KeyLengths(LENGTHS)},
    "positions": lambda length: {"mask": masks.Window(9, 5).at(*at_positions(length))},
    "other masks": lambda length: {"mask": masks.prefix_lm(*[np.arange(length)[None] < 7] * 2)},
    "array bias": lambda length: {"given": {"bias": biases.ArrayBias(normal(1, N, length, length))}},
    "T5 bias": lambda length: {"given": {"bias": biases.TableBias(normal(N, 8), True, 12)}},
    "lazy bias": lambda length: {"given": {"bias": biases.AlibiBias(normal(N))}},
    "relative keys": lambda length: {"given": {"bias": RelativeKeys(normal(5, H))}},
    "grouped heads": lambda length: {"kv_heads": K},
    "value width": lambda length: {"value_width": 8},
    "softcap": lambda length: {"softcap": 1.5},
    "sinks": lambda length: {"given": {"sinks": normal(N)}},
    "dropout": lambda length: {"dropout_rate": 0.4, "dropout_rng": np.array([1, 2], np.uint32)},
    "residuals": lambda length: {"return_residuals": True},
    "precision": lambda length: {"precision": jax.lax.Precision.HIGHEST},
}
DTYPES = {"float32": ["float32"], "half precision": ["bfloat16", "float16"]}
INTERPRETED = WHOLE | {"flash_t5"}
TOGETHER = "all that go together"
APART = {"softcap": {"tokamax"}}  # features that a kernel has, but not beside a bias
SAMPLE = {("tokamax", "softcap", "float32")}  # run each time beside everything at once; all else is slow


def dtypes_of(kernel):
    return [dtype for kind, dtypes in DTYPES.items() if kind in kernel.features for dtype in dtypes]


def combinations():
    for name, kernel in backends.KERNELS.items():
        for dtype in dtypes_of(kernel):
            slow = dtype == "float16" and name in INTERPRETED
            yield pytest.param(name, TOGETHER, dtype, marks=[pytest.mark.slow] * slow)
            for feature in REQUESTS:
                if feature in kernel.features:
                    marks = [] if (name, feature, dtype) in SAMPLE else [pytest.mark.slow]
                    yield pytest.param(name, feature, dtype, marks=marks)


def together(name, length):
    """One request for all that a kernel claims: dropping any of it would change the numbers."""
    features = backends.KERNELS[name].features
    requests = [REQUESTS[x](length) for x in REQUESTS if x in features and name not in APART.get(x, ())]
    given = [request.pop("given", {}) for request in requests]
    added = [x.pop("bias") for x in given if "bias" in x]
    mask = masks.combine(*(request.pop("mask", None) for request in requests))
    whole = {key: value for part in requests for key, value in part.items()}
    whole["given"] = {key: value for part in given for key, value in part.items()}
    if added:
        whole["given"]["bias"] = functools.reduce(operator.add, added)
    return whole | {"mask": mask}


def asked(name, feature, dtype):
    """Arrays with gradients and other options."""
    length = 128 if name in WHOLE else 34
    options = together(name, length) if feature == TOGETHER else REQUESTS[feature](length)
    kv_heads, width = options.pop("kv_heads", N), options.pop("value_width", H)
    arrays = {
        "query": normal(B, length, N, H).astype(jnp.dtype(dtype)),
        "key": normal(B, length, kv_heads, H, seed=1).astype(jnp.dtype(dtype)),
        "value": normal(B, length, kv_heads, width, seed=2).astype(jnp.dtype(dtype)),
    }
    return {**arrays, **options.pop("given", {})}, options


def results(attend, arrays, options):
    """Outputs and gradients of a weighted sum of them."""

    def loss(arrays):
        outputs = jax.tree.leaves(attend(**arrays, **options))
        weighted = (jnp.where(jnp.isfinite(x), x, 0) * normal(*x.shape, seed=9) for x in outputs)
        return sum(x.sum() for x in weighted), outputs

    (_, outputs), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return [np.asarray(x, np.float64) for x in (*outputs, *jax.tree.leaves(found))]


@pytest.mark.parametrize(("name", "feature", "dtype"), list(combinations()))
def test_supported_features_agree_with_float64(name, feature, dtype):
    arrays, options = asked(name, feature, dtype)
    with runnable(name) as attend:
        actual = results(attend, arrays, options)
    with jax.enable_x64(True):
        expected = results(attend_reference, widen(arrays), options)
    # in half precision kernels round weights to the dtype of the values before the second product
    tolerance = 5e-6 if dtype == "float32" else 3 * float(jnp.finfo(dtype).eps)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(np.where(np.isinf(b), 0, b)).max()))


@pytest.mark.parametrize("name", backends.KERNELS)
def test_together_is_all_that_the_table_claims(name):
    kernel = backends.KERNELS[name]
    for dtype in dtypes_of(kernel):
        arrays, options = asked(name, TOGETHER, dtype)
        residuals = options.pop("return_residuals", False)
        checked = request.check(**arrays, **options)
        apart = {x for x, names in APART.items() if name in names} | {"array bias", "T5 bias", "lazy bias"}
        claimed = set(REQUESTS) & kernel.features
        assert claimed - apart <= set(backends.needs(checked, residuals)) and kernel.refusals(checked) == []


@pytest.mark.parametrize("name", backends.KERNELS)
def test_every_other_feature_is_refused_with_its_name(name):
    kernel = backends.KERNELS[name]
    for feature in REQUESTS:
        for dtype in ("float32", "bfloat16"):
            arrays, options = asked(name, feature, dtype)
            residuals = options.pop("return_residuals", False)
            checked = request.check(**arrays, **options)
            assert feature in backends.needs(checked, residuals)
            reasons = kernel.reasons_against(checked, residuals, "cpu")
            assert (f"{feature} is not supported" in reasons) == (feature not in kernel.features)


def test_every_feature_has_a_request_or_is_a_property():
    dtypes = {"float64", "float32", "half precision"}
    assert set(REQUESTS) | backends.PROPERTIES | dtypes == set(backends.FEATURES)


@pytest.mark.parametrize("name", backends.KERNELS)
def test_declared_lengths_and_widths_are_enough(name):
    """A kernel's own refusals are silent for what the sweep runs it on."""
    for feature in sorted(set(REQUESTS) & backends.KERNELS[name].features):
        arrays, options = asked(name, feature, "bfloat16")
        options.pop("return_residuals", None)
        assert backends.KERNELS[name].refusals(request.check(**arrays, **options)) == []


@functools.cache
def extreme(dtype):
    return [normal(1, 32, 2, H, seed=seed).astype(jnp.dtype(dtype)) * 60 for seed in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "blockwise", "flash_t5"])
def test_blind_rows_and_extreme_numbers_are_never_nan(name, dtype):
    """The first queries see nothing at all; logits are in the thousands."""
    mask = masks.Window(right=-3) & masks.KeyLengths(np.array([20]))

    def loss(query, key, value):
        with runnable(name) as attend:
            output = attend(query, key, value, mask=mask)
        return output.astype(jnp.float32).sum(), output

    (_, output), found = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*extreme(dtype))
    np.testing.assert_array_equal(output[:, :3], 0)
    np.testing.assert_array_equal(found[0][:, :3], 0)
    for x in (output, *found):
        assert np.isfinite(x.astype(jnp.float32)).all()


@pytest.mark.parametrize("lengths", [(0, 3), (3, 0), (1, 1), (1, 5)])
def test_auto_takes_lengths_of_none_and_one(lengths):
    query, key = normal(B, lengths[0], N, H), normal(B, lengths[1], N, H, seed=1)
    output = backends.attend(query, key, key, mask=masks.Causal())
    assert output.shape == query.shape and np.isfinite(output).all()


def test_auto_falls_back_for_a_kernel_that_lacks_windows():
    query = jax.ShapeDtypeStruct((1, 128, N, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match="pallas_gpu: window mask is not supported"):
        backends.attend(*[jnp.ones(query.shape, query.dtype)] * 3, mask=masks.Window(2), implementation="pallas_gpu")
    decision = backends.explain_attend(query, query, query, mask=masks.Window(2), platform="tpu")
    assert decision.choice in ("reference", "blockwise")
    assert decision.rejections["splash"] == ["has not been measured; ask for it by name"]


def test_a_library_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    query = jnp.ones((1, 4, N, H))
    with pytest.raises(ValueError, match="tokamax: .*tokamax is not installed: pip install tokamax"):
        backends.attend(query, query, query, implementation="tokamax")
