import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import backends, masks
from flaxformer.components.attention.kernels import biases
from tests.components.attention.kernels import cases
from tests.components.attention.kernels.cases import H, K, N, normal

QUERY, KEY, VALUE = cases.inputs()

# a request for every feature, which needs that feature
REQUESTS = {
    "mask": {"mask": masks.Causal()},
    "array bias": {"bias": normal(1, N, 1, cases.S)},
    "lazy bias": {"bias": biases.TableBias(normal(N, 8), max_distance=6)},
    "grouped heads": {"kv_heads": K},
    "value width": {"value_width": 5},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": normal(N)},
    "dropout": {"dropout_rate": 0.5, "dropout_rng": np.array([0, 1], np.uint32)},
    "residuals": {"return_residuals": True},
    "float64": {"dtype": "float64"},
    "float32": {},
    "half precision": {"dtype": "bfloat16"},
}


def call(feature):
    options = dict(REQUESTS[feature])
    arrays = cases.inputs(options.pop("kv_heads", N), options.pop("value_width", H))
    dtype = options.pop("dtype", "float32")
    return [jnp.asarray(x, dtype) for x in arrays], options


def test_every_feature_has_a_request_that_needs_it():
    assert set(REQUESTS) == set(backends.FEATURES) - {"linear memory"}


@pytest.mark.parametrize("feature", REQUESTS)
@pytest.mark.parametrize("kernel", backends.KERNELS)
def test_kernels_do_what_the_table_says_and_refuse_the_rest(kernel, feature):
    with jax.enable_x64(feature == "float64"):
        arrays, options = call(feature)
        attend = functools.partial(backends.attend, *arrays, **options, implementation=kernel)
        platforms = backends.KERNELS[kernel].platforms
        if feature not in backends.KERNELS[kernel].features:
            with pytest.raises(ValueError, match=f"{kernel}: .*{feature} is not supported"):
                attend()
        elif platforms and jax.default_backend() not in platforms:
            with pytest.raises(ValueError, match=f"{kernel}: .*runs on {', '.join(platforms)}, not on"):
                attend()
        else:
            expected = backends.KERNELS["reference"].run(*arrays, **options)
            for a, b in zip(jax.tree.leaves(attend()), jax.tree.leaves(expected), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a.astype(float), b.astype(float), atol=0.02 if a.itemsize == 2 else 1e-6)


def shaped(length, dtype="float32", heads=N, platform=None, **options):
    x = jax.ShapeDtypeStruct((1, length, heads, 64), dtype)
    return backends.explain_attend(x, x, x, platform=platform, **options)


def test_auto_takes_the_fastest_that_can():
    assert shaped(128).choice == "reference"
    assert shaped(256).choice == shaped(4096).choice == "blockwise"
    assert shaped(4096, "bfloat16", platform="gpu").choice == "cudnn"
    assert shaped(4096, "bfloat16", platform="gpu", softcap=30.0).choice == "blockwise"
    assert "softcap is not supported" in shaped(4096, "bfloat16", platform="gpu", softcap=30.0).rejections["cudnn"]


def test_a_choice_is_explained():
    decision = shaped(513, "bfloat16", platform="gpu", implementation="cudnn", bias=jnp.ones((1, 1, 513, 513)))
    assert decision.choice is None
    assert decision.rejections["cudnn"] == ["bias gradient needs even lengths, got T=513, S=513"]
    assert decision.rejections["blockwise"] == ["cudnn was asked for"]
    assert str(shaped(128)).splitlines()[0] == "reference: chosen"
    assert "slower than reference below" in str(shaped(128))
    assert "slower than blockwise from" in str(shaped(4096))
    assert "slower than cudnn" in str(shaped(4096, "bfloat16", platform="gpu"))


def test_auto_runs_what_it_chose(monkeypatch):
    monkeypatch.setitem(backends.BLOCKWISE_FROM, "cpu", 0)
    expected = backends.attend(QUERY, KEY, VALUE, implementation="reference")
    np.testing.assert_allclose(backends.attend(QUERY, KEY, VALUE), expected, atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="implementation is 'flash'; expected 'auto' or one of reference, blockwise"):
        backends.attend(QUERY, KEY, VALUE, implementation="flash")


def test_bad_requests_are_refused_before_a_kernel_is_chosen():
    with pytest.raises(ValueError, match="mask has dtype float64; expected bool"):
        backends.attend(QUERY, KEY, VALUE, mask=np.ones((1, 1, 6, 7)))


def test_the_table_lists_every_kernel_and_feature():
    table = backends.support_table()
    assert all(name in table for name in (*backends.KERNELS, *backends.FEATURES))
    assert "| dropout: on attention weights | yes | yes |  |" in table
