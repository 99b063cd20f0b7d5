import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs, visualize


def test_weights_of_every_layer_and_head_are_captured_without_a_change_to_the_model():
    model = configs.load("t5_1_1/tiny")
    tokens = jnp.arange(1, 9).reshape(2, 4)
    variables = jax.jit(lambda: model.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False))()
    weights = visualize.attention_weights(model, variables, tokens, tokens, tokens)
    kinds = {path.split("/", 2)[0] + "/" + path.rsplit("/", 1)[1] for path in weights}
    assert kinds == {"encoder/attention", "decoder/self_attention", "decoder/encoder_decoder_attention"}
    for array in weights.values():
        assert array.shape[0] == 2 and array.shape[2:] == (4, 4)
        np.testing.assert_allclose(jnp.sum(array, axis=-1), 1.0, rtol=1e-2)


def test_a_model_without_attention_is_refused():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, enable_dropout=True):
            return x

    with pytest.raises(ValueError, match="Plain kept no attention weights"):
        visualize.attention_weights(Plain(), {}, jnp.ones(2))


def test_one_head_is_drawn_with_its_labels(tmp_path):
    figure = visualize.heat_map(np.eye(3), ["a", "b", "c"], ["x", "y", "long"], title="head 0")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["x", "y", "long"]
    np.testing.assert_array_equal(axes.images[0].get_array(), np.eye(3))
    figure.savefig(tmp_path / "head.png")
    assert (tmp_path / "head.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_all_heads_share_one_scale():
    weights = np.stack([np.eye(2), np.full((2, 2), 0.5), np.eye(2)[::-1]])
    figure = visualize.head_grid(weights, ["a", "b"], ["a", "b"], columns=2)
    drawn = [axes for axes in figure.axes if axes.images and axes.get_title().startswith("head")]
    assert [axes.get_title() for axes in drawn] == ["head 0", "head 1", "head 2"]
    assert {axes.images[0].get_clim() for axes in drawn} == {(0.0, 1.0)}


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"weights has shape \(2, 3, 3\); expected \[T S\]"):
        visualize.heat_map(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"weights has shape \(3, 3\); expected \[N T S\]"):
        visualize.head_grid(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="there are 1 key labels; expected 3"):
        visualize.heat_map(np.zeros((3, 3)), None, ["a"])
    with pytest.raises(ValueError, match="columns is 0"):
        visualize.head_grid(np.zeros((1, 3, 3)), columns=0)
