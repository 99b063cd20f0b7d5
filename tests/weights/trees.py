"""Small states as T5X has them."""

import numpy as np
from flax import traverse_util


def assert_equal(got, expected):
    """Equal trees: names, dtypes and numbers."""
    got, expected = (traverse_util.flatten_dict(tree, sep="/", keep_empty_nodes=True) for tree in (got, expected))
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray | np.generic):
            assert np.asarray(got[name]).dtype == value.dtype, name
            np.testing.assert_array_equal(np.asarray(got[name]), value, err_msg=name)
        else:
            assert got[name] == value, name


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def state():
    """Parameters of two kinds with Adafactor's statistics: factored, and not."""
    kernel, scale = numbers(6, 4), numbers(4)
    nothing = np.zeros(1, np.float32)
    return {
        "target": {"encoder": {"layers_0": {"query": {"kernel": kernel}}, "encoder_norm": {"scale": scale}}},
        "state": {
            "step": np.asarray(7, np.int32),
            "param_states": {
                "encoder": {
                    "layers_0": {
                        "query": {"kernel": {"v_row": numbers(4), "v_col": numbers(6), "v": nothing, "m": nothing}}
                    },
                    "encoder_norm": {"scale": {"v_row": nothing, "v_col": nothing, "v": scale**2, "m": nothing}},
                }
            },
        },
    }


def layers(count=3, bias=None, shared=None, seed=0):
    """A stack of layers: each with a kernel and a scale, and relative biases as asked for."""
    found = {}
    for i in range(count):
        found[f"layers_{i}"] = {"mlp": {"kernel": numbers(4, 5, seed=seed + i)}, "norm": {"scale": numbers(4, seed=i)}}
        if bias is not None:
            found[f"layers_{i}"]["relpos_bias"] = {"rel_embedding": bias(i)}
    if shared is not None:
        found["relpos_bias"] = {"rel_embedding": shared}
    return found
