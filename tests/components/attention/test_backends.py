import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import backends, masks
from tests.components.attention.kernels import cases

QUERY, KEY, VALUE = cases.inputs()


def shaped(length, dtype="float32", heads=cases.N, platform=None, **options):
    x = jax.ShapeDtypeStruct((1, length, heads, 64), dtype)
    return backends.explain_attend(x, x, x, platform=platform, **options)


def test_auto_takes_the_fastest_that_can():
    assert shaped(512).choice == "reference"  # all scores fit the cache
    assert shaped(512, heads=32).choice == shaped(1024, heads=8).choice == "blockwise"
    assert shaped(64, heads=4096).choice == "reference"  # blocks would be small
    assert shaped(4096, "bfloat16", platform="gpu").choice == "cudnn"
    assert shaped(4096, "bfloat16", platform="gpu", softcap=30.0).choice == "blockwise"
    assert "softcap is not supported" in shaped(4096, "bfloat16", platform="gpu", softcap=30.0).rejections["cudnn"]


def test_a_choice_is_explained():
    decision = shaped(513, "bfloat16", platform="gpu", implementation="cudnn", bias=jnp.ones((1, 1, 513, 513)))
    assert decision.choice is None
    assert decision.rejections["cudnn"] == ["bias gradient needs even lengths, got T=513, S=513"]
    assert decision.rejections["blockwise"] == ["cudnn was asked for"]
    assert str(shaped(128)).splitlines()[0] == "reference: chosen"
    assert "slower than reference below 65536 scores per head, here 16384" in str(shaped(128))
    assert "slower than reference below 4194304 scores in all, here 1048576" in str(shaped(512))
    assert "slower than blockwise from" in str(shaped(4096))
    assert "slower than cudnn" in str(shaped(4096, "bfloat16", platform="gpu"))


def test_auto_runs_what_it_chose(monkeypatch):
    monkeypatch.setitem(backends.BLOCKWISE_FROM, "cpu", (0, 0))
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


def test_choosing_a_kernel_computes_nothing(monkeypatch):
    monkeypatch.setattr(masks.Mask, "dense", lambda *_: pytest.fail("the square of a mask was made"))
    ids = jnp.zeros((1, 64), jnp.int32)
    mask = masks.Causal() & masks.Segments(ids, ids) & masks.Padding(ids > 0, None) & masks.KeyLengths(jnp.array([9]))
    assert shaped(64, "bfloat16", mask=mask, bias=jnp.zeros((1, 1, 1, 64))).choice == "reference"
