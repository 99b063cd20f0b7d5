import functools

import jax
import numpy as np
import pytest

from flaxformer.components.attention.blocks import Place
from flaxformer.components.attention.kernels import dropout, request
from flaxformer.components.attention.kernels.reference import attend_reference
from tests.components.attention.kernels import cases


def attend_numpy(query, key, value, **options):
    """The definition once more: float64, one query at a time."""
    asked = request.check(query, key, value, **options)
    (batch, length, num_heads, _), keys = query.shape, key.shape[1]
    shape = (batch, num_heads, length, keys)
    seen = np.broadcast_to(True if asked.mask is None else asked.mask.dense(length, keys), shape)
    scaled = np.swapaxes(query, 1, 2) * asked.scale
    bias = np.broadcast_to(0.0 if asked.bias is None else asked.bias.dense(length, keys, scaled), shape)
    kept = np.ones(shape)
    if asked.dropout_rate:
        place = Place(0, batch, 0, num_heads, 0, length, 0, keys)
        kept = np.asarray(
            dropout.kept(asked.seeds, asked.dropout_rate, place, num_heads, length, asked.broadcast_dropout)
        ) / (1 - asked.dropout_rate)
        kept = np.broadcast_to(kept, shape)
    output, total = np.zeros((batch, length, num_heads, value.shape[3])), np.zeros((batch, num_heads, length))
    for b, n, t in np.ndindex(batch, num_heads, length):
        head = n // (num_heads // key.shape[2])
        logits = asked.scale * key[b, :, head] @ query[b, t, n]
        if asked.softcap:
            logits = asked.softcap * np.tanh(logits / asked.softcap)
        weights = np.where(seen[b, n, t], np.exp(logits + bias[b, n, t]), 0)
        sums = weights.sum() + (0 if asked.sinks is None else np.exp(asked.sinks[n]))
        total[b, n, t] = np.log(sums) if sums else -np.inf
        output[b, t, n] = (weights * kept[b, n, t] / (sums or 1)) @ value[b, :, head]
    return output, total


@pytest.mark.parametrize("name", cases.CASES)
def test_reference_is_the_definition(name):
    arrays, options = cases.request(name)
    with jax.enable_x64(True):
        arrays = cases.widen(arrays)
        rest = [arrays.pop(x) for x in ("query", "key", "value")]
        expected = attend_numpy(*rest, **arrays, **options)
        actual = jax.jit(functools.partial(attend_reference, **options, return_residuals=True))(*rest, **arrays)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert actual[0].dtype == np.float64
