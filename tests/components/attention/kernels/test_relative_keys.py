import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.blocks import Grid, Place
from flaxformer.components.attention.kernels.blockwise import attend_blockwise
from flaxformer.components.attention.kernels.reference import attend_reference
from flaxformer.components.attention.kernels.relative_keys import RelativeKeys
from tests.components.attention.kernels.cases import inputs, normal

B, N, T, S, H = 2, 2, 6, 7, 4
QUERY = normal(B, N, T, H)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8]]), np.arange(S)[None] + 1
KINDS = {
    "shared": RelativeKeys(normal(5, H)),
    "per head": RelativeKeys(normal(5, N, H)),
    "backwards only": RelativeKeys(normal(3, H), bidirectional=False),
    "at positions": RelativeKeys(normal(5, N, H)).at(*POSITIONS),
}


def definition(bias):
    """Every pair by itself: the query times the key of its clipped distance."""
    table = np.asarray(bias.table)
    reach = (len(table) - 1) // 2 if bias.bidirectional else len(table) - 1
    found = np.zeros((B, N, T, S))
    for b, n, i, j in np.ndindex(*found.shape):
        here = i if bias.query_positions is None else bias.query_positions[b, i]
        there = j if bias.key_positions is None else bias.key_positions[0, j]
        row = np.clip(there - here, -reach, reach if bias.bidirectional else 0) + reach
        found[b, n, i, j] = QUERY[b, n, i] @ (table[row] if table.ndim == 2 else table[row, n])
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_pair_has_the_key_of_its_distance(name):
    bias, expected = KINDS[name], definition(KINDS[name])
    np.testing.assert_allclose(bias.dense(T, S, QUERY), expected, atol=1e-5)
    place = Place(jnp.int32(1), 1, jnp.int32(1), 1, jnp.int32(2), 3, jnp.int32(1), 4)
    np.testing.assert_allclose(bias.block(place, QUERY[1:, 1:, 2:5]), expected[1:, 1:, 2:5, 1:5], atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_uniform_blocks_have_one_number_per_query(name):
    bias, expected = KINDS[name], definition(KINDS[name])
    uniform = bias.uniform(Grid(6, 1, 7, 1)) if name == "at positions" else bias.uniform(Grid(3, 2, 3, 2))
    assert uniform.any() == (name != "at positions")
    for i, j in zip(*np.nonzero(uniform), strict=True):
        number = bias.number(Place(0, B, 0, N, 2 * i, 2, 2 * j, 2), QUERY[:, :, 2 * i : 2 * i + 2])
        block = expected[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(np.broadcast_to(number, block.shape), block, atol=1e-5)


def test_uniform_blocks_leave_gradients_as_they_are():
    """Long enough that most blocks are clipped to one distance."""
    query, key, value = inputs(query_length=40, key_length=40)
    table, weights = normal(5, query.shape[-1], seed=3), normal(*query.shape, seed=4)

    def gradients(attend, **blocks):
        def loss(query, table):
            return (attend(query, key, value, bias=RelativeKeys(table), mask=masks.Causal(), **blocks) * weights).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(query, table)

    found = gradients(attend_blockwise, query_block=8, key_block=8)
    for a, b in zip(found, gradients(attend_reference), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_only_the_query_needs_a_gradient_sometimes():
    query, key, value = inputs()
    bias = RelativeKeys(normal(3, query.shape[-1]))
    found, expected = (
        jax.jit(jax.grad(lambda q: attend(q, key, value, bias=bias).sum()))(query)  # noqa: B023
        for attend in (attend_blockwise, attend_reference)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_neither_pairs_nor_pairs_of_vectors_exist():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
        table = jax.ShapeDtypeStruct((65, 16), jnp.float32)

        def loss(query, key, value, table):
            return attend_blockwise(query, key, value, bias=RelativeKeys(table), mask=masks.Causal()).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(x, x, x, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    assert long < 4 * short
    assert long < 4096 * 4096  # bytes: a quarter of one square


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (RelativeKeys(normal(4, 8)), "expected .* with an odd R"),
        (RelativeKeys(normal(8)), r"RelativeKeys.table has shape \(8,\)"),
        (RelativeKeys(normal(3, 5)), "rows of width 5; expected 8"),
        (RelativeKeys(normal(3, 3, 8)), "bias has 3 heads; expected 1 or 4"),
        (RelativeKeys(normal(3, 8)).at(np.zeros((1, 3), int), None), "query_positions has shape"),
        (RelativeKeys(normal(3, 5)) + normal(1, 1, 1, 7), "rows of width 5"),
    ],
)
def test_tables_that_do_not_fit_are_refused(bias, message):
    with pytest.raises(ValueError, match=message):
        attend_reference(*inputs(), bias=bias)


def test_the_queries_are_asked_for():
    with pytest.raises(ValueError, match="RelativeKeys needs the queries; got none"):
        KINDS["shared"].dense(T, S)
