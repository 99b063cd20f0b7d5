import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention import masks
from flaxformer.components.attention.kernels.biases import FunctionBias
from flaxformer.components.attention.reformer_attention import SharedQueryKeyAttention, _own_position
from flaxformer.components.attention.variants import Attend, Lsh, lsh
from flaxformer.components.positions.alibi import Alibi
from tests.components.attention.kernels.cases import normal
from tests.contracts.test_cached_equals_uncached import ROWS, TOTAL, run_cached

B, T, N, K, H = 2, 24, 4, 2, 8
QUERY, KEY, VALUE = normal(B, T, N, H), normal(B, T, K, H, seed=1), normal(B, T, K, H, seed=2)
VALID = np.arange(T)[None] > np.array([[0], [9]])
MASKS = {
    "every key": None,
    "causal, padded": masks.Causal() & masks.Padding(VALID, VALID),
    "lengths, windows": masks.KeyLengths(jnp.array([20, 0])) & (masks.Window(left=6) | masks.Segments(VALID, VALID)),
}
OWN = FunctionBias(_own_position, None, 1)


def run(attend, mask, **options):
    """Output and gradients."""

    def loss(*heads):
        x = attend(*heads, mask=mask, **options)
        return (x * normal(*x.shape, seed=3)).sum(), x

    (_, x), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(QUERY, KEY, VALUE)
    return x, *gradients


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("sort_from", [1, 1000])
@pytest.mark.parametrize("name", MASKS)
def test_one_bucket_is_exact_attention(name, sort_from, monkeypatch):
    monkeypatch.setattr(lsh, "SORT_FROM", sort_from)
    close(run(Lsh(buckets=1, rounds=2), MASKS[name], bias=OWN), run(Attend(), MASKS[name], bias=OWN))


@pytest.mark.parametrize("name", MASKS)
def test_sorting_changes_nothing(name, monkeypatch):
    options = {"use_extra_logit": name == "every key", "bias": OWN if "causal" in name else None}
    attend = Lsh(buckets=4, rounds=3)
    expected = run(attend, MASKS[name], **options)
    monkeypatch.setattr(lsh, "SORT_FROM", 1)
    close(run(attend, MASKS[name], **options), expected)


def test_a_query_sees_the_keys_of_its_buckets():
    attend = Lsh(buckets=4, rounds=2)
    hashes = attend.hash(QUERY), np.repeat(attend.hash(KEY), N // K, axis=2)
    together = (hashes[0][..., :, None] == hashes[1][..., None, :]).any(0)
    assert 0.2 < together.mean() < 0.7
    np.testing.assert_array_equal(attend.weights(QUERY, KEY) > 0, together)
    np.testing.assert_array_equal(attend.hash(QUERY * 3), attend.hash(QUERY))
    products = np.einsum("btnh,bsnh->bnts", QUERY, np.repeat(KEY, N // K, axis=2))
    assert products[together].mean() > products[~together].mean() + 1


def test_masks_of_pairs_are_obeyed_unsorted(monkeypatch):
    mask = normal(B, 1, T, T) > 0
    expected = run(Lsh(buckets=4), mask)
    monkeypatch.setattr(lsh, "SORT_FROM", 1)
    close(run(Lsh(buckets=4), mask), expected)


def test_no_square_is_made():
    x = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)

    def loss(x):
        return Lsh(buckets=8, rounds=2)(x, x, x, OWN, mask=masks.Causal()).sum()

    assert "1024,1024" not in str(jax.make_jaxpr(jax.grad(loss))(x))


@pytest.mark.parametrize("options", [{"buckets": 3}, {"buckets": 0}, {"rounds": 0}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected at least one round, and one bucket or an even number"):
        Lsh(**options)(QUERY, KEY, VALUE)


X = normal(ROWS, TOTAL, 16)


def shared(**options):
    return SharedQueryKeyAttention(num_heads=4, head_dim=4, use_bias=False, rescale_logits=True, **options)


def test_keys_are_unit_queries_and_a_token_sees_itself_last():
    layer = shared(attention_fn=Attend(), output_projection=False)
    x, variables = layer.init_with_output(jax.random.key(0), X, X, masks.Causal())
    assert set(variables["params"]) == {"query", "value"}
    query, value = ((X @ variables["params"][name]["kernel"]).reshape(ROWS, TOTAL, 4, 4) for name in ("query", "value"))
    key = query / jnp.sqrt((query**2).mean(-1, keepdims=True))
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) / 2
    weights = jax.nn.softmax(jnp.where(np.tri(TOTAL, k=-1, dtype=bool), logits, -1e9)[:, :, 1:])
    np.testing.assert_allclose(x[:, 1:], jnp.einsum("bnts,bsnh->btnh", weights, value), atol=1e-5)
    np.testing.assert_allclose(x[:, 0], value[:, 0], atol=1e-6)


@pytest.mark.parametrize("positions", [None, Alibi(4)])
def test_cached_equals_uncached(positions):
    layer = shared(attention_fn=Lsh(buckets=2, rounds=2), positions=positions)
    params = layer.init(jax.random.key(0), X, X)["params"]
    expected = np.asarray(layer.apply({"params": params}, X, X, masks.Causal()))

    @jax.jit
    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, masks.Causal(), step=step, mutable=["cache"])

    for side, chunks in (("left", (2, 1)), ("right", (1, 1, 1))):
        for b, output in enumerate(run_cached(call, X, side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=3e-5, rtol=3e-5)


def test_what_has_other_keys_is_refused():
    with pytest.raises(ValueError, match="expected self-attention, the same array object twice"):
        shared().init(jax.random.key(0), X, X + 1)
    for options in ({"num_kv_heads": 2}, {"kernels_to_fuse": "kv", "split_head_kernel": True}):
        with pytest.raises(ValueError, match="every query head is a key head, and has no key kernel"):
            shared(**options).init(jax.random.key(0), X, X)
