import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import cudnn, request
from flaxformer.components.attention.masks import Causal, KeyLengths, Padding, Window

LENGTHS = np.array([3, 6])
DENSE = Padding(key_valid=np.arange(6)[None] > 2)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, (False, None, False)),
        (Causal(), (True, None, False)),
        (Causal() & Window(left=2) & Window(left=3), (True, 2, False)),
        (Window(2, 0), (True, 2, False)),
        (KeyLengths(LENGTHS), (False, None, True)),
        (Causal() & KeyLengths(LENGTHS), (True, None, True)),
    ],
)
def test_known_masks_need_no_array(mask, expected):
    native = cudnn.translate(mask, 2, 6, 6)
    assert (native.causal, native.window, native.key_lengths is not None) == expected
    assert native.rest is None


@pytest.mark.parametrize(
    "mask",
    [
        DENSE,
        Causal() & DENSE,
        Window(2, 2),
        Causal().at(np.arange(6)[None], np.arange(6)[None]),
        masks.prefix_lm(np.ones((1, 6), bool), np.ones((1, 6), bool)),
        KeyLengths(LENGTHS) & KeyLengths(LENGTHS),
    ],
)
def test_other_masks_become_an_array(mask):
    native = cudnn.translate(mask, 2, 6, 6)
    assert (native.causal, native.window, native.key_lengths) == (False, None, None)
    np.testing.assert_array_equal(native.rest.dense(6, 6), mask.dense(6, 6))


def test_a_window_that_leaves_the_keys_becomes_an_array():
    assert cudnn.translate(Causal() & Window(left=2), 1, 9, 6).rest is not None
    assert cudnn.translate(Causal(), 1, 9, 6).rest is None


@pytest.mark.parametrize(
    ("length", "width", "options", "reason"),
    [
        (4, 12, {}, "multiple of 8 up to 128, got H=12"),
        (4, 256, {}, "multiple of 8 up to 128, got H=256"),
        (513, 8, {"bias": jnp.ones((1, 1, 1, 513))}, "bias gradient needs even lengths, got T=513"),
        (513, 8, {"mask": np.ones((1, 1, 1, 513), bool)}, "mask array gradient needs even lengths, got T=513"),
        (0, 8, {}, "lengths must not be 0"),
        (513, 8, {"mask": Causal()}, None),
    ],
)
def test_sizes_that_cudnn_lacks_are_named(length, width, options, reason):
    query = jnp.ones((1, length, 2, width), jnp.bfloat16)
    reasons = cudnn.refusals(request.check(query, query, query, **options))
    assert reasons == [] if reason is None else reason in reasons[0]


@pytest.mark.parametrize("mask", [None, Causal() & Window(left=2), DENSE, Causal() & KeyLengths(np.array([0, 4]))])
def test_the_translation_means_the_same(mask, monkeypatch):
    """Without a GPU: what is handed to `jax.nn` gives the same numbers in XLA."""
    from tests.components.attention.kernels import cases

    attend = cudnn.jax.nn.dot_product_attention
    monkeypatch.setattr(
        "jax.nn.dot_product_attention",
        lambda *x, implementation, **options: attend(*x, **options, implementation="xla"),
    )
    query, key, value = cases.inputs(key_length=6)
    bias = cases.normal(1, cases.N, 6, 6)
    actual = cudnn.attend_cudnn(query, key, value, mask=mask, bias=bias, scale=0.5)
    expected = cudnn_reference(query, key, value, mask, bias)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def cudnn_reference(query, key, value, mask, bias):
    from flaxformer.components.attention.kernels.reference import attend_reference

    return attend_reference(query, key, value, mask=mask, bias=bias, scale=0.5)
