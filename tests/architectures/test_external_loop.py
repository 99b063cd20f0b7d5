"""Our modules under a decoding loop in T5X's manner, written for this test: it knows cache leaves by name and axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components import embedding
from tests.contracts import models

LENGTH, BEAMS = 5, 2
RANDOM = np.random.default_rng(0)
SOURCE = RANDOM.integers(1, models.VOCABULARY, (2, 4))
# Which beam each row goes on from, per step: crossing, doubled, and back.
PARENTS = [[0, 1, 2, 3], [1, 0, 2, 2], [1, 1, 3, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
WITHOUT_ROWS = ("cache_index", "cached_bias", "position_embedder_index")


def over_rows(function, cache, index_too=False):
    """`function` of every leaf but those that T5X's loop passes by, which it knows by name."""
    skipped = WITHOUT_ROWS[index_too:]

    def visit(path, leaf):
        return leaf if path[-1].key in skipped else function(leaf)

    return jax.tree_util.tree_map_with_path(visit, cache)


def search(step, cache, tokens, first, axis):
    """Feeds `tokens [R T]` from column `first` and reorders rows; returns logits and what each row has read."""
    read = jnp.asarray(tokens[:, :first])
    for position in range(first, LENGTH):
        token = jnp.asarray(tokens[:, position : position + 1])
        read = jnp.concatenate([read, token], 1)
        logits, cache = step(cache, token)
        parents = jnp.asarray(PARENTS[position])
        read, last = read[parents], logits[parents]
        cache = over_rows(lambda leaf, parents=parents: jnp.take(leaf, parents, axis), cache)
    return last, read


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_beams_are_expanded_and_reordered_by_leaf_name_and_batch_axis(scan):
    model, axis = models.encoder_decoder(scan=scan), int(scan)
    apply = {"enable_dropout": False, "mutable": ["cache"]}
    ones = jnp.ones((2, LENGTH), jnp.int32)
    params = jax.jit(lambda: model.init(jax.random.key(0), SOURCE, ones, ones, enable_dropout=False)["params"])()
    variables = {"params": params}
    encoded = jax.jit(lambda: model.apply(variables, SOURCE, enable_dropout=False, method="encode"))()
    _, made = jax.jit(lambda: model.apply(variables, jnp.ones_like(SOURCE), ones, ones, decode=True, **apply))()
    over_rows(lambda leaf: np.testing.assert_equal(leaf.shape[axis], 2), made["cache"])
    cache = over_rows(lambda leaf: jnp.repeat(leaf, BEAMS, axis), made["cache"])
    wide, source = jnp.repeat(encoded, BEAMS, 0), jnp.repeat(jnp.asarray(SOURCE), BEAMS, 0)

    @jax.jit
    def step(cache, token):
        logits, changed = model.apply(
            variables | {"cache": cache}, wide, source, token, token,
            decode=True, max_decode_length=LENGTH, method="decode", **apply,
        )  # fmt: skip
        return logits[:, 0], changed["cache"]

    tokens = RANDOM.integers(1, models.VOCABULARY, (2 * BEAMS, LENGTH))
    logits, read = search(step, cache, tokens, 0, axis)
    expected = model.apply(variables, source, read, read, enable_dropout=False)
    np.testing.assert_allclose(logits, expected[:, -1], atol=2e-5)


@pytest.mark.parametrize("kind", [pytest.param("multi_head", marks=pytest.mark.slow), "multi_query"])
def test_a_prefilled_prompt_of_any_length_is_gone_on_from(kind):
    model = models.decoder_only(make_attention=lambda: models.attention(kind))
    apply = {"enable_dropout": False, "mutable": ["cache"]}
    ones = jnp.ones((2, LENGTH), jnp.int32)
    params = jax.jit(lambda: model.init(jax.random.key(0), ones, ones, enable_dropout=False)["params"])()
    variables = {"params": params}
    prompt = RANDOM.integers(1, models.VOCABULARY, (2, LENGTH))
    lengths = jnp.array([2, 2])
    _, made = model.apply(variables, ones, ones, decode=True, **apply)
    _, filled = model.apply(variables | made, jnp.asarray(prompt), ones, prefill=True, prefill_lengths=lengths, **apply)
    cache = over_rows(lambda leaf: jnp.repeat(leaf, BEAMS, 0), filled["cache"], index_too=True)

    @jax.jit
    def step(cache, token):
        logits, changed = model.apply(
            variables | {"cache": cache}, token, token, decode=True, max_decode_length=LENGTH, **apply
        )
        return logits[:, 0], changed["cache"]

    tokens = np.repeat(prompt, BEAMS, 0)
    tokens[:, 2:] = RANDOM.integers(1, models.VOCABULARY, (4, LENGTH - 2))
    logits, read = search(step, cache, tokens, 2, 0)
    expected = model.apply(variables, read, read, enable_dropout=False)
    np.testing.assert_allclose(logits, expected[:, -1], atol=2e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_positions_that_an_embedder_counts_go_on_behind_a_prompt(ragged):
    table = embedding.PositionEmbed(8, models.WIDTH, embedding_init=jax.nn.initializers.normal(1.0))
    model = models.decoder_only(bias=False, layers=1, position_embedder_factory=table.clone)
    apply = {"enable_dropout": False, "mutable": ["cache"]}
    tokens = jnp.asarray(RANDOM.integers(1, models.VOCABULARY, (2, LENGTH)))
    lengths = jnp.array([3, 1 if ragged else 3])
    variables = {"params": model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]}
    expected = model.apply(variables, tokens, tokens, enable_dropout=False)
    _, made = model.apply(variables, tokens, tokens, decode=True, **apply)
    prompt = jnp.where(jnp.arange(LENGTH) < lengths[:, None], tokens, 0)
    given = {"prefill_lengths": lengths} if ragged else {"decoder_attention_mask": prompt[:, None, None] > 0}
    _, made = model.apply(variables | made, prompt, tokens, prefill=True, **given, **apply)
    for step in range(2):
        at = (lengths + step)[:, None]
        token = jnp.take_along_axis(tokens, at, 1)
        logits, made = model.apply(variables | made, token, token, decode=True, max_decode_length=LENGTH, **apply)
        np.testing.assert_allclose(logits, jnp.take_along_axis(expected, at[..., None], 1), atol=2e-5)
