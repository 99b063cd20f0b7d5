import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.transformer_common import LayerSequence, TransparentLayerSequence

X = jnp.ones((2, 3))


class Layer(nn.Module):
    """`x * w + shift`, with a shared module added if there is one."""

    shared: nn.Module | None = None

    @nn.compact
    def __call__(self, x, shift, *, enable_dropout):
        assert enable_dropout is False
        y = x * self.param("w", nn.initializers.constant(2.0), ()) + shift
        return y if self.shared is None else y + self.shared(x)


class Owner(nn.Module):
    """Owns the layers that a transparent sequence runs."""

    def setup(self):
        self.layers = [Layer() for _ in range(3)]
        self.sequence = TransparentLayerSequence(self.layers)

    def __call__(self, x, shift, *, enable_dropout):
        return self.sequence(x, shift, enable_dropout=enable_dropout)

    def apply_range_of_layers(self, *args, **kwargs):
        return self.sequence.apply_range_of_layers(*args, **kwargs)


@pytest.mark.parametrize("sequence", [LayerSequence(3, Layer), Owner()])
def test_layers_follow_each_other_and_share_the_arguments(sequence):
    y, variables = sequence.init_with_output(jax.random.key(0), X, 1.0, enable_dropout=False)
    np.testing.assert_array_equal(y, 15 * X)
    assert set(variables["params"]) == {"layers_0", "layers_1", "layers_2"}


@pytest.mark.parametrize("sequence", [LayerSequence(3, Layer), Owner()])
def test_ranges_are_slices(sequence):
    variables = {"params": {f"layers_{i}": {"w": jnp.float32(2 + i)} for i in range(3)}}

    def run(start, end):
        return sequence.apply(variables, start, end, X, 0.0, enable_dropout=False, method="apply_range_of_layers")[0, 0]

    assert [run(0, 1), run(1, None), run(0, -1), run(2, 2)] == [2, 12, 6, 1]


def test_extra_modules_are_shared_by_all_layers():
    sequence = LayerSequence(2, Layer, extra_modules={"shared": nn.Dense(3)})
    _, variables = sequence.init_with_output(jax.random.key(0), X, 0.0, enable_dropout=False)
    assert set(variables["params"]) == {"layers_0", "layers_1", "extra_modules_shared"}


def test_a_sequence_of_no_layers_is_the_identity():
    assert LayerSequence(0, Layer).apply({}, X, 0.0, enable_dropout=False) is X
