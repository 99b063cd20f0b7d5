import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import linear_state
from flaxformer.components.attention.feature_maps import EluFeatures, FavorFeatures, draw_directions
from flaxformer.components.attention.linear_attention import LinearAttention, read_mask
from flaxformer.components.attention.masks import (
    ArrayMask,
    Causal,
    KeyLengths,
    Padding,
    Segments,
    Window,
    prefix_lm,
)
from flaxformer.components.positions.alibi import Alibi
from flaxformer.components.positions.rotary import Rotary
from flaxformer.decoding import BeamSearch, generate
from flaxformer.step import Step
from tests.contracts import models
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

X = jax.random.normal(jax.random.key(0), (ROWS, TOTAL, models.WIDTH))
VALID = np.arange(TOTAL)[None] < np.array([[5], [7], [2]])


def linear(**options):
    options = {"num_heads": 4, "head_dim": 4, "use_bias": False, "features": FavorFeatures(8)} | options
    return LinearAttention(**options)


def kernel_attention(log_features, query, key, value, seen):
    """The definition: weights in proportion to the products of features."""
    phi_q, phi_k = (np.exp(np.asarray(log_features(x), np.float64)) for x in (query, key))
    weights = np.einsum("btnm,bsnm->bnts", phi_q, phi_k) * seen
    return np.einsum("bnts,bsnv->btnv", weights / weights.sum(-1, keepdims=True), value)


def heads(seed=0, length=7, width=4):
    return np.asarray(jax.random.normal(jax.random.key(seed), (3, 2, length, 4, width)))


FEATURES = {
    "favor": functools.partial(FavorFeatures(6).logarithms, directions=FavorFeatures(6).draw(4)),
    "elu": functools.partial(EluFeatures().logarithms, directions=None),
}


@pytest.mark.parametrize(("name", "chunk_size", "causal"), [("favor", 3, True), ("elu", 16, True), ("favor", 3, False)])
def test_sums_are_attention_by_products_of_features(name, chunk_size, causal):
    features, (query, key, value) = FEATURES[name], heads()
    valid = np.array([[False, True, True, True, True, False, True]])
    attend = linear_state.attend_causally if causal else linear_state.attend_all

    @jax.jit
    def run(query, key, value):
        state = linear_state.empty_state(key, value, features)
        return attend(query, key, value, valid, features, state, chunk_size)[0]

    x = run(query, key, value)
    seen = valid[:, None, None] & (np.tri(7, dtype=bool) if causal else True)
    first = 1 if causal else 0  # the first query sees nothing
    with np.errstate(invalid="ignore"):
        expected = kernel_attention(features, query, key, value, seen)
    np.testing.assert_allclose(x[:, first:], expected[:, first:], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(x[:, :first], 0)


def test_error_to_softmax_attention_falls_with_the_root_of_the_features():
    query, key, value = heads(1, 12, 8) * 0.3
    logits = np.where(np.tri(12, dtype=bool), np.einsum("btnh,bsnh->bnts", query, key), -np.inf)
    softmax = np.einsum("bnts,bsnv->btnv", np.asarray(jax.nn.softmax(logits)), value)

    @jax.jit
    def attend(directions):
        features = functools.partial(FavorFeatures(len(directions)).logarithms, directions=directions)
        state = linear_state.empty_state(key, value, features)
        return linear_state.attend_causally(query, key, value, np.ones((1, 12), bool), features, state, 64)[0]

    def error(count, seed):
        return np.mean((attend(FavorFeatures(count, seed).draw(8)) - softmax) ** 2) ** 0.5

    few, many = (np.mean([error(count, seed) for seed in range(6)]) for count in (64, 1024))
    assert many < 0.02 * np.abs(softmax).max()
    assert few / many == pytest.approx(4, rel=0.3)  # √(1024 / 64)


def test_orthogonal_directions_have_less_variance():
    query, key, _ = heads(2, 16, 8) * 0.2
    exact = np.exp(np.einsum("btnh,bsnh->bnts", query, key))

    def features(x, directions):
        return np.exp(x @ np.asarray(directions).T - (x**2).sum(-1, keepdims=True) / 2) / len(directions) ** 0.5

    def error(orthogonal, seed):
        directions = FavorFeatures(8, seed, orthogonal).draw(8)
        estimate = np.einsum("btnm,bsnm->bnts", features(query, directions), features(key, directions))
        return np.mean((estimate / exact - 1) ** 2)

    independent = np.mean([error(False, seed) for seed in range(120)])
    assert np.mean([error(True, seed) for seed in range(120)]) < 0.93 * independent


def test_directions_are_orthogonal_in_groups_and_none_is_preferred():
    for directions in (draw_directions(jax.random.key(0), 4000, 8), FavorFeatures(4000).draw(8)):
        directions = np.asarray(directions)
        group = directions[8:16] @ directions[8:16].T
        np.testing.assert_allclose(group - np.diag(np.diag(group)), 0, atol=1e-5)
        np.testing.assert_allclose(directions.mean(0), 0, atol=0.06)  # 4 standard errors
        np.testing.assert_allclose(np.cov(directions, rowvar=False), np.eye(8), atol=0.12)


def test_directions_differ_by_layer_and_seed_and_come_from_a_key_if_given():
    draw = FavorFeatures(12).draw
    np.testing.assert_array_equal(draw(8, "layer"), draw(8, "layer"))
    assert (draw(8, "layer") != draw(8, "other")).all() and (draw(8) != FavorFeatures(12, seed=1).draw(8)).all()
    drawn = FavorFeatures(12, orthogonal=False).draw(8, "layer", jax.random.key(0))
    assert drawn.shape == (12, 8) and (drawn != draw(8, "layer")).all()


def test_huge_queries_and_keys_stay_finite():
    features, (query, key, value) = FEATURES["favor"], heads() * 100
    state = linear_state.empty_state(key, value, features)

    def loss(query, key):
        x, _ = linear_state.attend_causally(query, key, value, np.ones((1, 7), bool), features, state, 3)
        return (x**2).sum()

    for x in jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(query, key)[1]:
        assert jnp.isfinite(x).all()


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_definition(causal):
    features, (query, key, value) = FEATURES["favor"], jnp.asarray(heads())
    seen = np.tri(7, dtype=bool) if causal else np.ones((7, 7), bool)
    attend = linear_state.attend_causally if causal else linear_state.attend_all

    def ours(query, key, value):
        state = linear_state.empty_state(key, value, features)
        return (attend(query, key, value, np.ones((1, 7), bool), features, state, 3)[0] ** 2).sum()

    def definition(query, key, value):
        weights = jnp.einsum("btnm,bsnm->bnts", jnp.exp(features(query)), jnp.exp(features(key))) * seen
        return (jnp.einsum("bnts,bsnv->btnv", weights / weights.sum(-1, keepdims=True), value) ** 2).sum()

    both = jax.jit(lambda *qkv: [jax.grad(f, argnums=(0, 1, 2))(*qkv) for f in (ours, definition)])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *both(query, key, value))


def test_it_takes_over_the_parameters_of_softmax_attention():
    softmax, mask = models.attention("grouped", positions=Rotary()), Causal() & Padding(VALID, VALID)
    variables = jax.jit(softmax.init)(jax.random.key(0), X, X)
    layer = linear(positions=Rotary(), num_kv_heads=2, features=FavorFeatures(2**12))
    pairs = [[part.clone(rescale_logits=scaled) for part in (layer, softmax)] for scaled in (True, False)]
    both = jax.jit(lambda x: [[part.apply(variables, x, x, mask)[VALID] for part in pair] for pair in pairs])
    for x, expected in both(X / 2):
        assert jnp.linalg.norm(x - expected) < 0.05 * jnp.linalg.norm(expected)
    fresh = jax.eval_shape(layer.init, jax.random.key(0), X, X)
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    jax.tree.map(lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)), fresh, variables)


@pytest.mark.parametrize(("kv_heads", "dtype"), [(2, "float32"), pytest.param(1, "bfloat16", marks=pytest.mark.slow)])
def test_cached_equals_uncached(kv_heads, dtype):
    layer = linear(num_kv_heads=kv_heads, positions=Rotary(), chunk_size=3, dtype=dtype)
    params = jax.jit(layer.init)(jax.random.key(0), X, X)["params"]
    expected = np.asarray(jax.jit(lambda x: layer.apply({"params": params}, x, x, Causal()))(X), np.float32)

    @functools.partial(jax.jit, static_argnames="mask")
    def apply(x, step, collections, mask):
        return layer.apply({"params": params, **collections}, x, x, mask, step=step, mutable=["cache"])

    def call(x, step, collections):
        output, collections = apply(x, step, collections, None if x.shape[1] == 1 else Causal())
        assert {leaf.shape[0] for leaf in jax.tree.leaves(collections)} == {ROWS}
        return output, collections

    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    for side, chunks in (("left", (2, 1)), ("right", (1, 1, 1))) if dtype == "float32" else [("left", (1, 1, 1))]:
        for b, output in enumerate(run_cached(call, np.asarray(X), side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], rtol=tolerance, atol=tolerance)


def test_sums_of_the_encoder_are_made_once_and_serve_all_beams():
    layer, beams = linear(), 2
    encoded, queries = X[:, :5], jax.random.normal(jax.random.key(4), (ROWS * beams, 3, models.WIDTH))
    mask = Padding(None, VALID[:, :5])
    params = jax.jit(layer.init)(jax.random.key(0), X, X)["params"]
    repeated = Padding(None, np.repeat(VALID[:, :5], beams, 0))
    expected = jax.jit(lambda x: layer.apply({"params": params}, x, jnp.repeat(encoded, beams, 0), repeated))(queries)
    step = Step.start(jnp.ones((1, 3), bool), 9).to_memory()
    call = lambda: layer.apply({"params": params}, queries, encoded, mask, step=step, mutable=["cross_cache"])  # noqa: E731
    first, kept = jax.jit(call)()
    np.testing.assert_allclose(first, expected, atol=1e-5, rtol=1e-5)
    assert {x.shape[0] for x in jax.tree.leaves(kept)} == {ROWS}
    read = jax.jit(lambda x: layer.apply({"params": params, **kept}, queries, x, mask, step=step))
    later = read(jnp.full_like(encoded, jnp.nan))
    np.testing.assert_allclose(later, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_decoder_with_beams_reads_sums_of_the_encoder():
    model = models.encoder_decoder(
        bias=False, layers=1, make_attention=lambda: linear(features=FavorFeatures(8, seed=3))
    )
    rng, beams = np.random.default_rng(3), 2
    source = rng.integers(1, models.VOCABULARY, (ROWS, 5)) * (np.arange(5) < np.array([[5], [2], [4]]))
    target = rng.integers(1, models.VOCABULARY, (ROWS * beams, 5))
    repeated = np.repeat(source, beams, 0)
    params = jax.jit(model.init)(jax.random.key(0), repeated, target, target)["params"]
    whole = jax.jit(lambda target: model.apply({"params": params}, repeated, target, target, enable_dropout=False))
    expected = whole(target)
    encoded = model.apply({"params": params}, source, enable_dropout=False, method="encode")

    @functools.partial(jax.jit, static_argnames="mutable")
    def call(tokens, step, collections, mutable):
        variables = {"params": params, **collections}
        options = {"step": step, "enable_dropout": False, "method": "decode", "mutable": list(mutable)}
        return model.apply(variables, encoded, source, tokens, **options)

    step = Step.start(jnp.ones((1, 3), bool), 5)
    outputs, collections = call(target[:, :3], step, {}, ("cache", "cross_cache"))
    np.testing.assert_allclose(outputs, expected[:, :3], atol=3e-5, rtol=3e-5)
    kept = collections["cross_cache"]
    assert {x.shape[0] for x in jax.tree.leaves(kept)} == {ROWS}
    rows = np.array([1, 1, 2, 3, 5, 4])  # as beam search reorders them
    cache = jax.tree.map(lambda x: x[rows], collections["cache"])
    target = np.concatenate([target[rows, :3], target[:, 3:]], axis=1)
    expected = whole(target)
    for t in (3, 4):
        step = step.advance()
        outputs, updated = call(target[:, t : t + 1], step, {"cache": cache, "cross_cache": kept}, ("cache",))
        np.testing.assert_allclose(outputs, expected[:, t : t + 1], atol=3e-5, rtol=3e-5)
        cache = updated["cache"]


def test_new_directions_are_drawn_from_a_key():
    layer = linear(features=FavorFeatures(8, orthogonal=False))
    variables = jax.jit(layer.init)(jax.random.key(0), X, X)
    draw = jax.jit(lambda seed: layer.apply(variables, X, X, rngs={"features": jax.random.key(seed)}))
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any() and (draw(1) != layer.apply(variables, X, X)).any()


def test_masks_are_read_as_causality_and_keys():
    lengths = KeyLengths(np.array([5, 7, 2]))
    for mask in (
        Causal() & Padding(~VALID, VALID),
        Window(right=0) & lengths,
        ArrayMask(VALID[:, None, None]) & Causal(),
        Padding(key_valid=VALID) & lengths & Causal(),
    ):
        causal, valid = read_mask(mask, TOTAL)
        assert causal
        np.testing.assert_array_equal(valid, VALID)
    assert read_mask(None, TOTAL) == (False, None) and read_mask(Padding(query_valid=VALID), TOTAL) == (False, None)
    np.testing.assert_array_equal(read_mask(np.arange(TOTAL), TOTAL)[1], np.arange(TOTAL)[None] > 0)


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (Window(left=2), "the mask Window"),
        (Causal().at(VALID, VALID), "the mask Causal at positions of its own"),
        (Causal() & Window(left=3, right=0), "the mask Window"),
        (Segments(VALID, VALID), "the mask Segments"),
        (prefix_lm(VALID, VALID), "the mask Or"),
        (np.tri(TOTAL)[None, None], r"an array mask of shape \(1, 1, 7, 7\)"),
    ],
)
def test_other_masks_are_refused_by_name(mask, name):
    with pytest.raises(ValueError, match=f"LinearAttention got {name}; expected Causal"):
        read_mask(mask, TOTAL)


def test_what_sums_cannot_do_is_refused():
    layer = linear()
    variables = jax.jit(layer.init)(jax.random.key(0), X, X)
    call = functools.partial(layer.apply, variables)
    start = Step.start(jnp.ones((1, TOTAL), bool), 9)
    with pytest.raises(ValueError, match="got a bias; expected none"):
        call(X, X, None, jnp.zeros((1, 4, TOTAL, TOTAL)))
    with pytest.raises(ValueError, match="got precomputed_qkv; expected none"):
        call(X, X, precomputed_qkv=(X, X, X))
    with pytest.raises(ValueError, match="decode=True or prefill=True; expected a Step with slots"):
        call(X, X, decode=True)
    with pytest.raises(ValueError, match="a step of branches; expected a Step with slots, and a row of its own"):
        call(X[:, :2], X[:, :2], step=start.advance().branch(ROWS, 2, 20), mutable=["cache"])
    with pytest.raises(ValueError, match="7 queries and 5 keys; expected as many of one as of the other"):
        call(X, X[:, :5], Causal())
    with pytest.raises(ValueError, match="got a mask of keys along with cache slots"):
        call(X, X, Padding(None, VALID), step=start, mutable=["cache"])
    with pytest.raises(ValueError, match="is to write its sums, but the collection 'cache' is not mutable"):
        call(X, X, step=start)
    with pytest.raises(ValueError, match="has no 'linear_weights' in the collection 'cache'"):
        call(X[:, :1], X[:, :1], step=start.advance(), mutable=["cache"])
    with pytest.raises(ValueError, match="which bias scores; expected a scheme that rotates"):
        linear(positions=Alibi(4)).apply(variables, X, X)


@pytest.mark.slow
def test_beam_search_moves_the_sums_of_each_beam():
    """The scores of the sequences found are those of a forward pass over them."""
    model = models.encoder_decoder(bias=False, make_attention=lambda: linear(positions=Rotary()))
    source = np.random.default_rng(5).integers(2, models.VOCABULARY, (ROWS, 5))
    variables = {"params": jax.jit(model.init)(jax.random.key(0), source, source, source)["params"]}
    found = generate(
        model,
        variables,
        {"encoder_input_tokens": source},
        strategy=BeamSearch(num_beams=3, alpha=0.0, num_return=3),
        max_new_tokens=6,
        eos_id=1,
    )
    tokens = np.asarray(found.tokens).reshape(ROWS * 3, 6)
    inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    valid = np.arange(6) < np.asarray(found.lengths).reshape(-1, 1)
    repeated = np.repeat(source, 3, 0)
    logits = model.apply(variables, repeated, inputs, np.where(valid, tokens, 0) + valid, enable_dropout=False)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.scores.reshape(-1), (chosen * valid).sum(-1), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in tokens.tolist()}) > ROWS
