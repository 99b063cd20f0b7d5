"""Requests that every kernel is tried on, and the float64 definition it is held against."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels import biases
from flaxformer.components.attention.kernels.relative_keys import RelativeKeys

B, T, S, N, K, H = 2, 6, 7, 4, 2, 8  # uneven against blocks of 4 queries and 3 keys


def normal(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def inputs(kv_heads=K, value_width=H, query_length=T, key_length=S):
    return (
        normal(B, query_length, N, H),
        normal(B, key_length, kv_heads, H, seed=1),
        normal(B, key_length, kv_heads, value_width, seed=2),
    )


POSITIONS = np.array([[0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8]])
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 4]]), np.array([[1, 1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3, 3]])
BLIND = np.array([0, 5])  # the first row of the batch sees nothing


def wave(values, query_positions, key_positions):
    distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
    return jnp.sin(values[:, None, None] * distance)


# name -> options; arrays under "given" get gradients
CASES = {
    "plain": {},
    "causal": {"mask": masks.Causal()},
    "window": {"mask": masks.Causal() & masks.Window(left=1)},
    "segments": {"mask": masks.Segments(*SEGMENTS)},
    "segments unknown while tracing": {"mask": masks.Segments(*map(jnp.asarray, SEGMENTS)) & masks.Window(2, 2)},
    "blind rows": {"mask": masks.KeyLengths(jnp.asarray(BLIND)) & masks.Causal()},
    "blind rows and sinks": {
        "mask": masks.KeyLengths(jnp.asarray(BLIND)) & masks.Causal(),
        "given": {"sinks": normal(N, seed=4)},
    },
    "prefix": {"mask": masks.prefix_lm(np.arange(T)[None] < 3, np.arange(S)[None] < 3)},
    "mask array": {"mask": normal(B, N, T, S, seed=5) > 0},
    "padding and bias array": {
        "mask": masks.Padding(None, jnp.arange(S) < jnp.array([[3], [7]])),
        "given": {"bias": biases.ArrayBias(normal(1, N, T, S, seed=6))},
    },
    "bias row": {"given": {"bias": biases.ArrayBias(normal(B, 1, 1, S, seed=6))}, "kv_heads": N},
    "T5 bias": {"given": {"bias": biases.TableBias(normal(N, 4, seed=6), False, 3)}, "mask": masks.Causal()},
    "T5 bias at positions": {
        "given": {"bias": biases.TableBias(normal(N, 8, seed=6), True, 6).at(POSITIONS, np.arange(S)[None])},
        "mask": masks.Causal().at(POSITIONS, np.arange(S)[None]),
    },
    "ALiBi": {"given": {"bias": biases.AlibiBias(normal(N, seed=6))}, "value_width": 5},
    "sum of biases": {
        "given": {
            "bias": biases.FunctionBias(wave, normal(N, seed=6), N)
            + biases.TableBias(normal(N, 8, seed=7), True, 6)
            + normal(1, 1, T, S, seed=8)
        },
        "kv_heads": 1,
    },
    "relative keys": {"given": {"bias": RelativeKeys(normal(3, H, seed=6))}, "mask": masks.Causal()},
    "relative keys at positions": {
        "given": {
            "bias": RelativeKeys(normal(4, N, H, seed=6), False).at(POSITIONS, np.arange(S)[None])
            + biases.TableBias(normal(N, 8, seed=7), True, 6)
        },
        "scale": 0.5,
    },
    "softcap": {"softcap": 1.5, "scale": 1.0, "given": {"bias": biases.TableBias(normal(N, 8, seed=6), True, 6)}},
    "dropout": {"dropout_rate": 0.4, "given": {"sinks": normal(N, seed=4)}, "mask": masks.Causal()},
    "dropout for all queries": {"dropout_rate": 0.4, "broadcast_dropout": True},
}


def request(name, dtype="float32"):
    """Arrays with gradients and other options of a case, at the precision of `dtype`."""
    options = dict(CASES[name])
    given = options.pop("given", {})
    query, key, value = inputs(options.pop("kv_heads", K), options.pop("value_width", H))
    if "dropout_rate" in options:
        options["dropout_rng"] = np.array([1, 2], np.uint32)
    if dtype != "float32":  # the definition starts from the same rounded numbers
        query, key, value = (x.astype(jnp.dtype(dtype)) for x in (query, key, value))
    return {"query": query, "key": key, "value": value, **given}, options


def gradients(attend, arrays, options):
    """Output, log-sum-exp and the gradients of a weighted sum of both with respect to all arrays."""
    query, value = arrays["query"], arrays["value"]
    weights = normal(*query.shape[:3], value.shape[-1], seed=9)
    weights_of_sum = normal(*(query.shape[i] for i in (0, 2, 1)), seed=10)

    def loss(arrays):
        output, total = attend(**arrays, **options)
        seen = jnp.isfinite(total)
        loss = (output * weights).sum() + jnp.where(seen, total * weights_of_sum, 0).sum()
        return loss, (output, total)

    (_, results), found = jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))(arrays)
    found = [x for x in jax.tree.leaves(found) if x.dtype != jax.dtypes.float0]
    return [np.asarray(x, np.float64) for x in (*results, *found)]


def widen(arrays):
    """The same numbers in float64."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if floating(x) else np.asarray(x), arrays)
