"""Heads on an encoder: each reads what it names, also what earlier heads gave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer import configs
from flaxformer.architectures import heads

TOKENS = jnp.array([[5, 6, 7, 0], [8, 9, 0, 0]])


@pytest.fixture(scope="module")
def model():
    return configs.load("bert/tiny", ["NUM_LAYERS = 1"])


def with_heads(model, **factories):
    return model.clone(head_factories=tuple(factories.items()))


def test_every_kind_of_head_has_its_shape(model):
    made = with_heads(
        model,
        pooled=lambda: heads.Pooler(6),
        labels=lambda: heads.Classifier(3, dropout_rate=0.5),
        token_labels=lambda: heads.TokenClassifier(5, dropout_rate=0.5),
        replaced=lambda: heads.TokenDetector(7, "gelu_exact"),
        classes=lambda: heads.DeepClassifier(8, 3, dropout_rates=(0.1, 0.1)),
    )
    shapes = jax.eval_shape(lambda: made.init_with_output(jax.random.key(0), TOKENS, enable_dropout=False)[0])
    assert {name: x.shape for name, x in shapes.items()} == {
        "hidden": (2, 4, 32), "pooled": (2, 6), "labels": (2, 3), "token_labels": (2, 4, 5), "replaced": (2, 4),
        "classes": (2, 3),
    }  # fmt: skip


def test_padding_changes_no_valid_output_and_types_do(model):
    def outputs(tokens, **options):
        apply = jax.jit(lambda v, x, o: model.apply(v, x, enable_dropout=False, **o))
        return apply(variables, tokens, options)

    variables = jax.jit(lambda: model.init(jax.random.key(0), TOKENS, enable_dropout=False))()
    whole, short = outputs(TOKENS), outputs(TOKENS[:1, :3])
    np.testing.assert_allclose(whole["hidden"][:1, :3], short["hidden"], atol=1e-5)
    np.testing.assert_allclose(whole["pooled"][:1], short["pooled"], atol=1e-5)
    said = outputs(TOKENS, encoder_valid=TOKENS > 0, token_types=jnp.zeros_like(TOKENS))
    np.testing.assert_array_equal(said["masked_lm"], whole["masked_lm"])
    other = outputs(TOKENS, token_types=jnp.ones_like(TOKENS))
    assert np.abs(other["hidden"] - whole["hidden"]).max() > 1e-3


def test_token_types_without_an_embedder_are_refused():
    model = configs.load("distilbert/tiny", ["NUM_LAYERS = 1"])
    with pytest.raises(ValueError, match="got token_types and embeds none"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, token_types=TOKENS, enable_dropout=False))


def test_shared_layers_cannot_be_scanned():
    with pytest.raises(ValueError, match="several layer factories or a layer_order with scan_layers=True"):
        model = configs.load(["albert/tiny", "parts/scanned"])
        jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, enable_dropout=False))


def test_layers_run_in_the_order_given():
    once = configs.load("albert/tiny", ["LAYER_ORDER = (0,)"])
    twice = configs.load("albert/tiny")
    make = lambda model: jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, enable_dropout=False))  # noqa: E731
    assert make(once)["params"] == make(twice)["params"]
