import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.blocks import Grid
from flaxformer.components.attention.kernels import plan
from flaxformer.components.attention.kernels.biases import AlibiBias, TableBias
from flaxformer.components.attention.masks import Causal, KeyLengths, Padding, Window

GRID = Grid(4, 4, 4, 4)
BIAS = TableBias(np.zeros((1, 4), np.float32), bidirectional=False, max_distance=5)


def table(mask, bias=None, rows=1):
    kinds = np.asarray(plan.kinds(GRID, mask, bias, rows))
    return ["\n".join("".join(".cp"[kind] for kind in line) for line in chunk) for chunk in kinds]


def test_kinds_are_those_of_the_pictures():
    assert table(Causal()) == ["c...\npc..\nppc.\npppc"]
    assert table(Causal() & Window(left=4)) == ["c...\ncc..\n.cc.\n..cc"]
    assert table(Causal(), BIAS) == ["c...\ncc..\npcc.\nppcc"]
    assert table(None, BIAS) == ["cppp\nccpp\npccp\nppcc"]
    assert table(None) == ["pppp\n" * 3 + "pppp"]
    assert table(None, AlibiBias(np.ones(1, np.float32))) == ["cccc\n" * 3 + "cccc"]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_chunk_of_rows_visits_what_any_of_them_sees(array):
    mask = KeyLengths(array([4, 8, 9, 16]))
    assert table(mask, rows=2) == ["pc..\n" * 3 + "pc..", "ppcc\n" * 3 + "ppcc"]
    assert table(mask)[2] == "ppc.\n" * 3 + "ppc."


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_visits_name_plain_blocks_first(array):
    kinds = plan.kinds(GRID, Causal() & Padding(None, array(np.arange(16)[None] >= 4)), None, 1)
    order, plain, careful = plan.visits(kinds)
    np.testing.assert_array_equal(plain, [[0, 0, 1, 2]])
    np.testing.assert_array_equal(careful, [[0, 1, 1, 1]])
    assert list(order[0, 3, :3]) == [1, 2, 3]
    assert isinstance(order, np.ndarray) == (array is np.asarray)


@pytest.mark.parametrize(
    ("lengths", "groups", "expected"),
    [
        ((100, 7), 1, Grid(1, 100, 1, 7)),
        ((513, 512), 1, Grid(2, 272, 2, 256)),
        ((1024, 513), 2, Grid(4, 256, 3, 176)),
        ((512, 256), 16, Grid(8, 64, 1, 256)),
    ],
)
def test_blocks_are_of_one_size_and_not_too_large(lengths, groups, expected):
    assert plan.grid_for(*lengths, groups, None, None) == expected


def test_given_block_sizes_are_kept():
    assert plan.grid_for(10, 10, 1, 4, 3) == Grid(3, 4, 4, 3)


FULL = 512 * 256  # scores of a block on a CPU


@pytest.mark.parametrize(
    ("batch", "kv_heads", "scores", "expected"),
    [
        (8, 4, FULL, (1, 1)),
        (8, 4, FULL // 2, (1, 2)),
        (6, 4, FULL // 16, (3, 4)),
        (2, 3, 1, (2, 3)),
    ],
)
def test_chunks_fill_the_cache_of_a_cpu(batch, kv_heads, scores, expected):
    assert plan.chunk_for(batch, kv_heads, scores) == expected


def test_accelerators_take_all_at_once(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert plan.chunk_for(8, 4, FULL) == (8, 4)
    assert plan.grid_for(1024, 1025, 2, None, None) == Grid(4, 256, 3, 352)
