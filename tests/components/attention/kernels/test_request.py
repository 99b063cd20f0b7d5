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
        ({"mask": np.ones((6, 7), bool)}, r"expected 4 axes \[#B #N #T #S\]"),
        ({"mask": np.ones((2, 1, 6, 6), bool)}, "Was it built for other lengths"),
        ({"mask": np.ones((3, 1, 6, 7), bool)}, "ArrayMask has 3 rows; expected 1 or 2"),
        ({"mask": np.ones((2, 3, 6, 7), bool)}, "expected 1 or 4 heads"),
        ({"mask": masks.Causal() & masks.KeyLengths(np.ones(3, int))}, "And has 3 rows; expected 1 or 2"),
        ({"mask": masks.Padding(key_valid=np.ones((2, 6), bool))}, r"expected \[#B S\] = \(#B, 7\)"),
        ({"bias": np.ones((1, 1, 6, 7), int)}, "bias has dtype int64; expected floating point"),
        ({"bias": np.ones((1, 4, 6, 6), np.float32)}, "Was it built for other lengths"),
        ({"bias": np.ones((1, 3, 6, 7), np.float32)}, "bias has 3 heads; expected 1 or 4"),
        ({"bias": np.ones((3, 1, 6, 7), np.float32)}, "ArrayBias has 3 rows; expected 1 or 2"),
        ({"bias": biases.TableBias(jnp.ones((2, 32)))}, "Was num_heads changed without its position scheme"),
        (
            {"bias": biases.AlibiBias(jnp.ones(4)).at(np.zeros((1, 5), int), None)},
            r"query_positions has shape \(1, 5\)",
        ),
        ({"sinks": np.ones(3, np.float32)}, r"sinks have shape \(3,\); expected \(4,\)"),
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


def test_learned_scales_are_refused():
    with pytest.raises(ValueError, match="Multiply the query by a learned scale"):
        jax.jit(lambda scale: request.check(Q, KV, KV, scale=scale).scale)(0.5)
