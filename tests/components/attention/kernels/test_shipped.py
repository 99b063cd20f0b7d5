"""What kernels of other libraries refuse beside the table, and what is asked of them."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import flash_t5, flash_tpu, pallas_gpu, request, splash, via_tokamax
from flaxformer.components.attention.kernels.biases import AlibiBias, TableBias

IDS = np.arange(128)[None] // 50


def reasons(module, length=128, key_length=None, width=16, **options):
    query, key = jnp.ones((1, length, 2, width)), jnp.ones((1, key_length or length, 2, width))
    return module.refusals(request.check(query, key, key, **options))


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (flash_t5, {"width": 24}, "the head size must be one of 16, 32, 64, 128, got H=24"),
        (flash_t5, {"length": 0}, "lengths must not be 0, got T=0"),
        (flash_t5, {"mask": masks.Padding()}, "the mask Padding is not supported"),
        (flash_t5, {"bias": AlibiBias(jnp.ones(2))}, "its only bias is a T5 table, got AlibiBias"),
        (flash_t5, {"bias": TableBias(jnp.ones((2, 8))).at(IDS, IDS)}, "a T5 bias at positions other than"),
        (pallas_gpu, {"length": 130}, "lengths must be multiples of 128, got T=130"),
        (pallas_gpu, {"key_length": 256}, "queries and keys must be equally many, got T=128, S=256"),
        (pallas_gpu, {"width": 8}, "the head size must be 16 to 128, got H=8"),
        (pallas_gpu, {"mask": masks.Segments(IDS, IDS + 1)}, "segments of queries and keys must be one and the same"),
        (pallas_gpu, {"mask": masks.Padding()}, "the mask Padding is not supported"),
        (flash_tpu, {"width": 192}, "the head size must be at most 128 or a multiple of it, got H=192"),
        (flash_tpu, {"scale": 0.0, "bias": jnp.ones((1, 1, 1, 128))}, "a bias needs a scale other than 0"),
        (flash_tpu, {"mask": masks.Padding()}, "the mask Padding is not supported"),
        (splash, {"length": 256, "key_length": 128, "mask": masks.Window(4)}, "a window may leave the keys behind"),
        (splash, {"mask": masks.Window(right=-1)}, "a window must hold the query's own position"),
        (splash, {"mask": masks.Padding()}, "the mask Padding is not supported"),
        (via_tokamax, {"softcap": 1.0, "bias": jnp.ones((1, 1, 1, 128))}, "a softcap together with a bias means"),
        (via_tokamax, {"key_length": 5, "mask": masks.Window(4)}, "a window needs equally many queries and keys"),
        (via_tokamax, {"length": 0}, "lengths must not be 0"),
    ],
)
def test_what_a_kernel_lacks_is_named(module, options, reason):
    assert any(reason in found for found in reasons(module, **options))


@pytest.mark.parametrize("module", [flash_t5, pallas_gpu, flash_tpu, splash, via_tokamax])
def test_ordinary_requests_are_not_refused(module):
    assert reasons(module, mask=masks.Causal() & masks.Segments(IDS, IDS)) == []


def test_flash_t5_refuses_also_when_called_directly():
    query = jnp.ones((1, 4, 2, 24))
    with pytest.raises(ValueError, match="flash_t5: softcap is not supported; the head size must be one of"):
        flash_t5.attend_flash_t5(query, query, query, softcap=30.0)


def test_what_tokamax_does_not_take_is_a_value_error(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("head_dim")

    monkeypatch.setitem(sys.modules, "tokamax", types.SimpleNamespace(dot_product_attention=refuse))
    query = jnp.ones((1, 4, 2, 8))
    with pytest.raises(ValueError, match=r"tokamax: its kernels do not take this request \(head_dim\)"):
        via_tokamax.attend_tokamax(query, query, query)
