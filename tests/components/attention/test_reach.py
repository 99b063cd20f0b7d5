"""The properties of every mask are in `test_masks`, with these among them; here is what each of them shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.backends import attend
from flaxformer.components.attention.blocks import Grid
from flaxformer.components.attention.masks import HIDDEN, MIXED, VISIBLE, Causal, Padding, Window, describe
from flaxformer.components.attention.reach import (
    Blocks,
    Dilated,
    Flagged,
    Global,
    GlobalTokens,
    RandomBlocks,
    big_bird,
    global_tokens,
    sliding_window,
)

T, S = 12, 15
QUERIES, KEYS = np.array([[3, 4, 5, 9, 0, 1, 2, 20, 21, 22, 23, 24]]), np.arange(S)[None] * 2
FLAGS = np.arange(T)[None] % 5 == 3
DRAWN = RandomBlocks(2, 5, count=2)._drawn()


def inside(position, *spans):
    return any(start <= position < end for start, end in spans)


DEFINITIONS = {
    "dilated": (Dilated(3, 2, 1), lambda t, s: (s - t) % 3 == 0 and -6 <= s - t <= 3),
    "strided": (Dilated(4), lambda t, s: (s - t) % 4 == 0),
    "blocks": (Blocks(4), lambda t, s: t // 4 == s // 4),
    "blocks and neighbours": (Blocks(3, 1, 2), lambda t, s: -1 <= s // 3 - t // 3 <= 2),
    "global": (Global(((0, 2), (7, 8))), lambda t, s: inside(t, (0, 2), (7, 8)) or inside(s, (0, 2), (7, 8))),
    "seen by all": (Global(((0, 2),), sees_all=False), lambda t, s: s < 2),
    "random": (RandomBlocks(2, 5, count=2), lambda t, s: max(t, s) < 10 and DRAWN[t // 2, s // 2]),
    "sliding": (sliding_window(3), lambda t, s: 0 <= t - s < 3),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("bound", [False, True])
def test_pattern_is_its_pairwise_definition(name, bound):
    mask, sees = DEFINITIONS[name]
    queries, keys = (QUERIES[0], KEYS[0]) if bound else (range(T), range(S))
    mask = mask.at(QUERIES, KEYS) if bound else mask
    expected = [[bool(sees(t, s)) for s in keys] for t in queries]
    np.testing.assert_array_equal(mask.dense(T, S)[0, 0], expected)


def test_flagged_tokens_see_and_are_seen_row_by_row():
    flags = np.array([[True, False, False], [False, False, True]])
    expected = flags[:, :, None] | flags[:, None, :]
    np.testing.assert_array_equal(Flagged(flags, flags).dense(3, 3)[:, 0], expected)


@pytest.mark.parametrize(
    "mask",
    [
        Blocks(2),
        Blocks(8, before=1) & Causal(),
        Window(3, 3) | Global(((0, 2),)),
        Dilated(5, 1, 1),
        Dilated(1, 3, 3),
        Global(((7, 12),)),
        Flagged(np.arange(12)[None] < 2, np.arange(12)[None] == 7),
    ],
)
def test_kernels_are_told_what_to_skip_and_what_to_show(mask):
    visibility = mask.visibility(Grid(6, 2, 6, 2))
    blocks = np.asarray(mask.dense(12, 12))[0, 0].reshape(6, 2, 6, 2)
    assert isinstance(visibility, np.ndarray)  # known while tracing
    exact = np.where(blocks.all((1, 3)), VISIBLE, np.where(blocks.any((1, 3)), MIXED, HIDDEN))
    np.testing.assert_array_equal(visibility[0], exact)


def test_big_bird_blocks_are_all_or_nothing():
    mask = big_bird(block_size=4, length=40, random_blocks=2, seed=3)
    visibility = mask.visibility(Grid(10, 4, 10, 4))[0]
    assert set(np.unique(visibility)) == {HIDDEN, VISIBLE}
    np.testing.assert_array_equal(np.kron(visibility == VISIBLE, np.ones((4, 4), bool)), mask.dense(40, 40)[0, 0])
    np.testing.assert_array_equal((visibility == VISIBLE).sum(1), [10, 6, 7, 7, 7, 7, 7, 7, 6, 10])


def test_random_blocks_are_drawn_once_and_by_seed():
    draw = lambda seed, blocks=9: RandomBlocks(1, blocks, 2, seed).dense(6, 6)  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert not RandomBlocks(1, 6, 9, avoid=1, edge=1).dense(6, 6)[0, 0, 2, jnp.array([0, 1, 2, 3, 5])].any()


PATTERNS = {
    "dilated": Causal() & Dilated(3),
    "window and global": Causal() & (Window(left=5) | Global(((0, 3),))),
    "big bird": big_bird(8, 40, 1) & Padding(None, np.arange(40)[None] < 37),
    "flagged": Window(2, 2) | Flagged(np.arange(40)[None] % 13 == 5, np.arange(40)[None] % 13 == 5),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_blockwise_kernel_equals_the_reference(name):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 40, 2, 8))

    def run(implementation):
        def loss(query):
            y = attend(query, key, value, mask=PATTERNS[name], implementation=implementation)
            return (y**2).sum(), y

        return jax.jit(jax.grad(loss, has_aux=True))(query)

    for ours, expected in zip(run("blockwise"), run("reference"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("call", [lambda: Dilated(0), lambda: Blocks(0), lambda: RandomBlocks(-1, 2)])
def test_sizes_below_one_are_refused(call):
    with pytest.raises(ValueError, match=r"(stride|size) is -?\d; expected at least 1"):
        call().dense(2, 2)
    with pytest.raises(ValueError, match="size is 0; expected at least 1"):
        sliding_window(0)


def test_global_tokens_hide_nothing_and_are_found():
    flags = jnp.array([[True, False, False]])
    mask = Window(left=1) & GlobalTokens(flags)
    assert describe(mask, 3, 3) == describe(Window(left=1), 3, 3)
    assert global_tokens(mask) is flags
    assert global_tokens(Window(left=1)) is None
    assert (GlobalTokens(flags).visibility(Grid(1, 3, 1, 3)) == VISIBLE).all()
