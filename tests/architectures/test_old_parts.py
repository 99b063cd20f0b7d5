"""Parts written for google/flaxformer plug into our layers, train and decode by T5X's protocol, and are told."""

import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import calling, dense
from flaxformer.components.attention import dense_attention
from flaxformer.errors import PartError
from flaxformer.step import Step
from tests.architectures import old_parts
from tests.contracts import models

TOKENS = np.random.default_rng(0).integers(1, 17, (2, 6))


def layer(*, shared_relative_position_bias=None, parallel=False):
    return t5_architecture.DecoderLayer(
        self_attention=old_parts.OldAttention(),
        encoder_decoder_attention=None,
        mlp=old_parts.OldMlp(),
        dropout_factory=models.dropout,
        layer_norm_factory=old_parts.OldNorm,
        shared_relative_position_bias=shared_relative_position_bias,
        parallel=parallel,
    )


def model():
    return t5_architecture.DecoderOnly(
        decoder_factory=lambda shared_token_embedder=None: t5_architecture.Decoder(
            layer_factory=layer,
            dropout_factory=models.dropout,
            layer_norm_factory=old_parts.OldNorm,
            num_layers=1,
            shared_relative_position_bias_factory=old_parts.OldBias,
            token_embedder_factory=old_parts.OldTable,
            position_embedder_factory=old_parts.OldPositions,
            output_logits_factory=models.logits,
        )
    )


@pytest.fixture(scope="module")
def params():
    calling._note.cache_clear()
    with pytest.warns(DeprecationWarning) as told:
        found = model().init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False)["params"]
    pattern = r"old_parts\.(Old\w+) is called with decode, prefill, prefill_lengths, as google/flaxformer"
    said = [re.search(pattern, str(warning.message)) for warning in told]
    assert sorted(match[1] for match in said) == ["OldAttention", "OldMlp", "OldNorm"]
    return found


def test_each_class_is_told_once(params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().init(jax.random.key(0), TOKENS, TOKENS, enable_dropout=False)


def test_our_own_and_plain_parts_are_not_told():
    calling.note_old_convention(None, nn.LayerNorm(), dense.MlpBlock(use_bias=False), models.attention())
    assert "step" in calling._accepted(dense_attention.MultiHeadDotProductAttention.__call__)[0]


@pytest.mark.parametrize("prompt", [0, 3])
def test_they_decode_by_t5xs_protocol_what_one_pass_computes(params, prompt):
    length = TOKENS.shape[1]
    expected = model().apply({"params": params}, TOKENS, TOKENS, enable_dropout=False)
    variables, options = {"params": params}, {"enable_dropout": False, "mutable": ["cache"]}
    ones = jnp.ones_like(TOKENS)
    _, made = model().apply(variables, ones, ones, decode=True, **options)
    cache = made["cache"]
    if prompt:
        lengths = jnp.full((2,), prompt)
        logits, made = model().apply(
            variables | {"cache": cache}, TOKENS, ones, prefill=True, prefill_lengths=lengths, **options
        )
        np.testing.assert_allclose(logits[:, :prompt], expected[:, :prompt], atol=1e-5)
        cache = made["cache"]
        cache["decoder"]["position_embedder"]["position_embedder_index"] = jnp.full((1,), prompt)

    @jax.jit
    def step(cache, token):
        logits, changed = model().apply(
            variables | {"cache": cache}, token, token, decode=True, max_decode_length=length, **options
        )
        return logits, changed["cache"]

    for position in range(prompt, length):
        logits, cache = step(cache, TOKENS[:, position : position + 1])
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=1e-5)


def test_their_attention_refuses_a_cache_that_a_driver_counts(params):
    step = Step.start(jnp.ones((2, 6), bool), cache_length=8)
    with pytest.raises(PartError, match="OldAttention takes no `step`, and its keys are to be cached by one"):
        jax.eval_shape(
            lambda: model().apply({"params": params}, TOKENS, enable_dropout=False, step=step, mutable=["cache"])
        )


def test_they_stand_in_encoders_and_beside_each_other(params):
    module = t5_architecture.EncoderLayer(
        attention=old_parts.OldAttention(),
        mlp=old_parts.OldMlp(),
        dropout_factory=models.dropout,
        layer_norm_factory=old_parts.OldNorm,
        relative_position_bias_factory=old_parts.OldBias,
        parallel=True,
    )
    x = jnp.ones((1, 3, 16))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), x, enable_dropout=False))["params"]
    assert sorted(made) == ["attention", "layer_norm", "mlp", "relpos_bias"]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    _, variables = layer(parallel=True).init_with_output(keys, x, None)
    dropped = layer(parallel=True).apply(variables, x, None, rngs={"dropout": jax.random.key(2)})
    kept = layer(parallel=True).apply(variables, x, None, enable_dropout=False)
    assert not np.allclose(dropped, kept)  # enable_dropout reaches the MLP
