import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.blocks import Grid, Place
from flaxformer.components.attention.kernels import biases
from flaxformer.components.relative_position_biases import consecutive_relative_bias
from tests.components.attention.kernels.cases import normal, wave

T, S, N = 6, 8, 2
POSITIONS = np.array([[0, 1, 2, 0, 1, 2], [9, 8, 7, 6, 5, 4]]), np.arange(S)[None] + 2
TABLE = biases.TableBias(normal(N, 8), bidirectional=True, max_distance=6)
BIASES = {
    "array": biases.ArrayBias(normal(2, N, T, S)),
    "row": biases.ArrayBias(normal(1, 1, 1, S)),
    "table": TABLE,
    "causal table": biases.TableBias(normal(N, 4), bidirectional=False, max_distance=5),
    "table at positions": TABLE.at(*POSITIONS),
    "alibi": biases.AlibiBias(normal(N)),
    "alibi at positions": biases.AlibiBias(normal(N)).at(*POSITIONS),
    "function": biases.FunctionBias(wave, normal(N), N),
    "sum": TABLE + biases.AlibiBias(normal(N)) + normal(1, N, T, 1),
}


def whole(bias):
    return jnp.broadcast_to(bias.dense(T, S), (2, N, T, S))


@pytest.mark.parametrize("name", BIASES)
def test_blocks_are_parts_of_the_whole(name):
    bias = BIASES[name]
    for place in (Place(0, 2, 0, N, 2, 3, 5, 2), Place(jnp.int32(1), 1, jnp.int32(1), 1, jnp.int32(1), 4, 0, 8)):
        row, rows, head, heads, query, queries, key, keys = map(int, place)
        part = whole(bias)[row : row + rows, head : head + heads, query : query + queries, key : key + keys]
        np.testing.assert_allclose(jnp.broadcast_to(bias.block(place), part.shape), part, atol=1e-6)


@pytest.mark.parametrize("name", BIASES)
def test_gradients_of_all_blocks_add_up(name):
    bias = BIASES[name]
    scores = normal(2, N, T, S, seed=3).round()  # sums of whole numbers do not depend on their order
    wanted = jax.grad(lambda bias: (whole(bias) * scores).sum(), allow_int=True)(bias)
    wanted = [x for x in jax.tree.leaves(wanted) if x.dtype != jax.dtypes.float0]
    total = bias.zero_gradient()
    for row in range(2):
        for query in (0, 3):
            for key in (0, 4):
                place = Place(row, 1, 0, N, jnp.int32(query), 3, key, 4)
                part = scores[row : row + 1, :, query : query + 3, key : key + 4]
                total = bias.add_gradient(total, part, place)
    for a, b in zip(total, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", BIASES)
def test_uniform_blocks_hold_one_number(name):
    bias, grid = BIASES[name], Grid(3, 2, 4, 2)
    uniform = bias.uniform(grid)
    for i, j in zip(*np.nonzero(uniform), strict=True):
        block = whole(bias)[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        number = bias.number(Place(0, 2, 0, N, jnp.int32(2 * i), 2, jnp.int32(2 * j), 2))
        np.testing.assert_allclose(jnp.broadcast_to(number, block.shape), block, atol=1e-6)
    assert uniform.any() == (name in ("table", "causal table"))


def test_uniform_gradients_are_those_of_the_number():
    bias, place = BIASES["causal table"], Place(0, 1, 0, N, 4, 2, 6, 2)
    (total,) = bias.add_gradient(bias.zero_gradient(), jnp.ones((1, N, 1, 1)) * 3, place, uniform=True)
    np.testing.assert_array_equal(total, [[3, 0, 0, 0]] * N)


def test_sums_are_uniform_where_all_parts_are():
    both = TABLE + BIASES["causal table"]
    grid = Grid(16, 2, 16, 2)
    np.testing.assert_array_equal(both.uniform(grid), TABLE.uniform(grid) & BIASES["causal table"].uniform(grid))
    place = Place(0, 1, 0, N, 30, 2, 0, 2)
    np.testing.assert_allclose(both.number(place), TABLE.number(place) + BIASES["causal table"].number(place))


def test_tables_are_t5_biases():
    for bias in (TABLE, BIASES["causal table"]):
        expected = consecutive_relative_bias(
            bias.table, T, S, bidirectional=bias.bidirectional, max_distance=bias.max_distance
        )
        np.testing.assert_array_equal(bias.dense(T, S), expected)


def test_alibi_falls_with_distance():
    bias = biases.AlibiBias(jnp.array([0.5])).dense(3, 3)[0, 0]
    np.testing.assert_array_equal(bias, [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]])


@pytest.mark.parametrize("name", BIASES)
def test_padding_keeps_what_was_there(name):
    padded = BIASES[name].pad(T + 2, S + 1)
    padded.validate(T + 2, S + 1)
    found = jnp.broadcast_to(padded.dense(T + 2, S + 1), (2, N, T + 2, S + 1))
    np.testing.assert_array_equal(found[..., :T, :S], whole(BIASES[name]))


def test_positions_reach_every_part_of_a_sum():
    both = (TABLE + biases.AlibiBias(normal(N))).at(*POSITIONS)
    np.testing.assert_allclose(
        both.dense(T, S), whole(BIASES["table at positions"]) + whole(BIASES["alibi at positions"]), atol=1e-6
    )


def test_only_floating_point_arrays_are_biases():
    with pytest.raises(ValueError, match="bias has dtype int32; expected floating point"):
        biases.as_bias(jnp.ones((1, 1, T, S), int))


@pytest.mark.parametrize("bias", [BIASES["array"], TABLE.at(*POSITIONS), BIASES["sum"].at(*POSITIONS)])
def test_arrays_for_other_lengths_are_refused(bias):
    with pytest.raises(ValueError, match="expected"):
        bias.validate(T + 1, S)
