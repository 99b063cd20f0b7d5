"""Stacks leave their assembly open to subclasses."""

import functools

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.linen import partitioning

from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import transforms
from tests.contracts import models

TOKENS = np.random.default_rng(0).integers(1, models.VOCABULARY, (2, 5))


class Scanning(t5_architecture.Decoder):
    """Scans its layers itself, as subclasses for google/flaxformer do."""

    def _construct_scanned_decoder(self, lyrf, num_layers, num_broadcast_args=12):
        return transforms.factory_scan(
            lyrf,
            variable_axes={"params": 1, "cache": 0},
            variable_broadcast=False,
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * num_broadcast_args,
            length=num_layers,
            axis_name="layers",
            axes_collections=("params", "cache"),
        )()


class Renaming(t5_architecture.Decoder):
    """Changes the layer that is scanned."""

    def _construct_scanned_decoder(self, lyrf, num_layers, num_broadcast_args=10):
        layer = super()._construct_scanned_decoder(lyrf, num_layers, num_broadcast_args)
        layer.sow_intermediates = True
        return layer


def of_class(made, kind):
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__ if name not in ("parent", "name")}
    return kind(**fields)


def decoder_only(kind):
    def make(**options):
        return of_class(models.decoder(cross=False, scan=True, **options), kind)

    return t5_architecture.DecoderOnly(decoder_factory=make, scan_layers=True)


def test_a_subclass_may_scan_the_layers_itself():
    default, own = models.decoder_only(scan=True), decoder_only(Scanning)
    expected, made = (
        jax.eval_shape(lambda m=m: m.init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False))
        for m in (default, own)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(made["params"], expected["params"])
    drawn = np.random.default_rng(1)
    variables = {"params": jax.tree.map(lambda x: drawn.normal(size=x.shape).astype("f"), expected["params"])}
    run = functools.partial(jax.jit, static_argnums=0)(
        lambda model, v: model.apply(v, TOKENS, TOKENS, enable_dropout=False)
    )
    np.testing.assert_allclose(run(own, variables), run(default, variables), atol=1e-5)
    names = {path: leaf.names for path, leaf in jax.tree_util.tree_leaves_with_path(
        made["params_axes"], is_leaf=lambda x: isinstance(x, partitioning.AxisMetadata))}  # fmt: skip
    assert any("layers" in found for found in names.values())


def test_a_subclass_may_change_the_layer_that_is_scanned():
    model = decoder_only(Renaming)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False))
    assert set(variables["params"]["decoder"]) == set(
        jax.eval_shape(lambda: models.decoder_only(scan=True).init(jax.random.key(0), TOKENS, TOKENS))["params"][
            "decoder"
        ]
    )


class Listing(t5_architecture.Encoder):
    """Uses another number of layers than it was told."""

    def _construct_scanned_encoder(self, lyrf, num_layers):
        assert num_layers == self.num_layers
        return super()._construct_scanned_encoder(lyrf, num_layers)


def test_an_encoder_has_the_same_hook():
    model = of_class(models.encoder(scan=True), Listing)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, enable_dropout=False))["params"]
    assert "encoder" in made


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("make", [models.encoder, lambda **options: models.decoder(cross=False, **options)])
def test_a_layer_that_was_not_told_whether_it_is_scanned_is_refused(make, scan):
    stack = make(scan=scan)
    wrong = stack.clone(layer_factory=lambda **options: stack.layer_factory(**options).clone(scanned=not scan))
    with pytest.raises(ValueError, match=rf"scan_layers is {scan} and \w+.scanned is {not scan}; expected the same"):
        jax.eval_shape(lambda: wrong.init(jax.random.key(0), *(None,) * ("dec" in wrong._scan_name), TOKENS))
