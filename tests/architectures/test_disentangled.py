import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs
from flaxformer.architectures.disentangled import ConvolvedEncoderLayer

IDS = jnp.array([[5, 6, 7, 8, 9]])
CONVOLVED = "LAYERS = (@disentangled.ConvolvedEncoderLayer, @t5_architecture.EncoderLayer)"


def build(*statements):
    return configs.load("deberta/tiny", statements)


def shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), IDS, enable_dropout=False))["params"]


def test_layers_share_one_table_of_distances():
    encoder = shapes(build())["encoder"]
    assert encoder["distances"]["rel_embeddings"].shape == (16, 32)
    assert "distances" not in encoder["layers_0"]["attention"]


def test_what_stands_at_padding_does_not_reach_the_convolution():
    model = build("LAYERS = (@disentangled.ConvolvedEncoderLayer,)", "NUM_LAYERS = 1", "HEADS = ()")
    made = shapes(model)
    assert {"convolution", "convolution_norm"} <= set(made["encoder"]["layers_0"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), made)
    valid = jnp.array([[1, 1, 1, 0, 0]] * 3)
    ids = jnp.tile(IDS, (3, 1)).at[1, 3].set(77).at[2, 2].set(77)
    run = jax.jit(lambda: model.apply({"params": params}, ids, encoder_valid=valid, enable_dropout=False)["hidden"])
    first, padding_changed, token_changed = run()[:, :3]
    np.testing.assert_array_equal(first, padding_changed)
    assert np.abs(first[:2] - token_changed[:2]).max() > 1e-3


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="DisentangledEncoder got .* scan_layers=True; expected a table, and a list"):
        shapes(build("disentangled.DisentangledEncoder.scan_layers = True"))
    with pytest.raises(ValueError, match="ConvolvedEncoderLayer got convolution=None"):
        shapes(build(CONVOLVED, "disentangled.ConvolvedEncoderLayer.convolution = None"))
    assert ConvolvedEncoderLayer.activation == "tanh"
