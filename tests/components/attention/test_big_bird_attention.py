import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.big_bird_attention import BigBirdAttention
from flaxformer.components.attention.dense_attention import MultiHeadDotProductAttention
from flaxformer.components.attention.masks import Padding

OPTIONS = {"num_heads": 2, "use_bias": True, "rescale_logits": True}
LAYER = BigBirdAttention(**OPTIONS, block_size=2, random_blocks=2)
LENGTH = 21  # 11 blocks; of up to 18 tokens, all see all


def inputs(length):
    x = jax.random.normal(jax.random.key(1), (1, length, 8))
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(LAYER.init, jax.random.key(0), x, x)["params"]
    return {"params": jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)}, x


def test_weights_are_those_of_blocks_in_which_the_first_counts_again():
    variables, x = inputs(LENGTH)
    valid = jnp.arange(LENGTH)[None] < LENGTH - 1

    @jax.jit
    def weights():
        call = {"mask": Padding(valid, valid), "enable_dropout": False, "mutable": ["attention"]}
        return [layer.apply(variables, x, x, **call)[1]["attention"]["weights"][0][0] for layer in (LAYER, full)]

    full = MultiHeadDotProductAttention(**OPTIONS)
    ours, dense = weights()
    for t in range(LENGTH - 1):
        block = t // 2
        near = {block - 1, block, block + 1, 0, 10} if 0 < block < 10 else range(11)
        again = 2 if 0 < block < 10 else 0
        counts = np.array([(s // 2 in near) + again * (s < 2) for s in range(LENGTH)])
        expected = dense[:, t] * counts
        np.testing.assert_allclose(ours[:, t], expected / expected.sum(-1, keepdims=True), atol=1e-5, rtol=1e-4)


def test_short_sequences_see_everything():
    variables, x = inputs(18)
    call = {"enable_dropout": False}
    ours, full = (layer.apply(variables, x, x, **call) for layer in (LAYER, MultiHeadDotProductAttention(**OPTIONS)))
    np.testing.assert_array_equal(ours, full)


def test_keys_of_other_positions_are_refused():
    with pytest.raises(ValueError, match="BigBirdAttention got 3 queries for 4 keys; expected as many"):
        LAYER.init(jax.random.key(0), jnp.ones((1, 3, 8)), jnp.ones((1, 4, 8)))
