import jax.numpy as jnp

from flaxformer.components.positions import PositionScheme, Rotary


def test_a_scheme_does_nothing_by_default():
    x, positions = jnp.ones((1, 2, 1, 4)), jnp.arange(2)[None]
    scheme = PositionScheme()
    assert scheme.rotate(x, positions) is x
    assert scheme.bias(positions, positions) is None
    assert scheme.embed(positions) is None


def test_rotary_only_rotates():
    positions = jnp.arange(2)[None]
    assert Rotary().bias(positions, positions) is None
    assert Rotary().embed(positions) is None


def test_schemes_are_values():
    assert PositionScheme() == PositionScheme()
    assert Rotary(fraction=0.5) == Rotary(fraction=0.5) != Rotary()
    assert len({Rotary(), Rotary(), Rotary(interleaved=True)}) == 2
