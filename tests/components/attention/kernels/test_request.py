import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases, request

Q = np.ones((2, 6, 4, 8), np.float32)
KV = np.ones((2, 7, 2, 8), np.float32)


def test_a_request_is_filled_with_defaults():
    asked = request.check(Q, KV, KV)
    assert asked.scale == 8**-0.5 and asked.mask is None and asked.bias is None and asked.seeds is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((Q[0], KV, KV), "4 axes each"),
        ((Q.astype(int), KV, KV), "expected floating point"),
        ((jnp.asarray(Q, jnp.float8_e4m3fn), KV, KV), "expected floating point of 16 bits or more"),
        ((Q, KV.tolist(), KV), "key is a list; expected an array"),
        ((Q, KV, KV[:, :6]), "with the same B, S, K and H"),
        ((Q[:1], KV, KV), "with the same B, S, K and H"),
        ((Q[..., :4], KV, KV), "with the same B, S, K and H"),
        ((Q[:, :, :3], KV, KV), "query has 3 heads and key 2; expected a multiple"),
        ((Q, KV[:, :, :0], KV[:, :, :0]), "query has 4 heads and key 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        request.check(*arrays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((2, 1, 6, 7))}, "mask has dtype float64; expected bool"),
        ({"mask": True}, "mask is a bool; expected an array"),
        ({"mask": np.ones((2, 6, 7), bool)}, r"mask has shape \(2, 6, 7\); expected .* mask\[:, None\] for \[B T S\]"),
        ({"mask": masks.Causal() & np.ones((2, 6, 7), bool)}, r"mask has shape \(2, 6, 7\)"),
        ({"mask": np.ones((1, 1, 1, 6, 7), bool)}, r"expected \[#B #N #T #S\] or \[#T #S\]"),
        ({"mask": np.ones((6, 6), bool)}, "Was it built for other lengths"),
        ({"mask": np.ones((2, 1, 6, 6), bool)}, "Was it built for other lengths"),
        ({"mask": np.ones((3, 1, 6, 7), bool)}, "ArrayMask has 3 rows; expected 1 or 2"),
        ({"mask": np.ones((2, 3, 6, 7), bool)}, "expected 1 or 4 heads"),
        ({"mask": masks.Causal() & masks.KeyLengths(np.ones(3, int))}, "And has 3 rows; expected 1 or 2"),
        ({"mask": masks.Padding(key_valid=np.ones((2, 6), bool))}, r"expected \[#B S\] = \(#B, 7\)"),
        ({"bias": np.ones((1, 1, 6, 7), int)}, "bias has dtype int64; expected floating point"),
        ({"bias": 1.0}, "bias is a float; expected an array"),
        ({"bias": np.ones((1, 1, 1, 6, 7), np.float32)}, r"bias has shape \(1, 1, 1, 6, 7\); expected"),
        ({"bias": np.ones((3, 6, 7), np.float32)}, "bias has 3 heads; expected 1 or 4"),
        ({"bias": np.ones((1, 4, 6, 6), np.float32)}, "Was it built for other lengths"),
        ({"bias": np.ones((1, 3, 6, 7), np.float32)}, "bias has 3 heads; expected 1 or 4"),
        ({"bias": np.ones((3, 1, 6, 7), np.float32)}, "ArrayBias has 3 rows; expected 1 or 2"),
        ({"bias": biases.TableBias(jnp.ones((2, 32)))}, "Was num_heads changed without its position scheme"),
        (
            {"bias": biases.AlibiBias(jnp.ones(4)).at(np.zeros((1, 5), int), None)},
            r"query_positions has shape \(1, 5\)",
        ),
        ({"sinks": np.ones(3, np.float32)}, r"sinks have shape \(3,\); expected \(4,\)"),
        ({"sinks": np.ones(4, int)}, "sinks have dtype int64; expected floating point"),
        ({"softcap": 0.0}, "softcap is 0.0; expected a positive number"),
        ({"dropout_rate": 1.0}, "expected 0 <= dropout_rate < 1"),
        ({"dropout_rate": 0.1}, "dropout_rng is None; expected a random key"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        request.check(Q, KV, KV, **options)


def test_sizes_of_one_broadcast():
    asked = request.check(
        Q,
        KV,
        KV,
        mask=np.ones((1, 4, 6, 1), bool),
        bias=np.ones((2, 1, 1, 7), np.float32),
        dropout_rate=0.1,
        dropout_rng=jax.random.key(0),
    )
    assert asked.mask.dense(6, 7).shape == (1, 4, 6, 7) and asked.bias.dense(6, 7).shape == (2, 1, 6, 7)


@pytest.mark.parametrize("shape", [(), (7,), (6, 1), (6, 7), (1, 6, 7)])
def test_arrays_of_fewer_axes_broadcast_from_the_right(shape):
    seen = np.random.default_rng(0).random(shape) < 0.5
    for mask in (seen, masks.ArrayMask(seen) & masks.Causal()):
        asked = request.check(Q, KV, KV, mask=mask, bias=np.asarray(seen, np.float32))
        expected = np.broadcast_to(seen, (1, 6, 7))[0] & (mask is seen or np.tri(6, 7, dtype=bool))
        np.testing.assert_array_equal(asked.mask.dense(6, 7), expected[None, None])
        np.testing.assert_array_equal(asked.bias.dense(6, 7), np.broadcast_to(seen, (1, 1, 6, 7)))
    asked = request.check(Q, KV, KV, bias=np.ones((4, 6, 7), np.float32))
    assert asked.bias.dense(6, 7).shape == (1, 4, 6, 7)


@pytest.mark.parametrize("name", ["scale", "softcap", "dropout_rate"])
def test_learned_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is traced; .* Multiply the query by a learned scale"):
        jax.jit(lambda number: request.check(Q, KV, KV, **{name: number}).scale)(0.5)
