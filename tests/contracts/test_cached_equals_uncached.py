"""forward = prefill + steps = chunks, for every attention x positions x mask, padded left or right, ragged."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.masks import Causal, Window
from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.relative_position_biases import relative_bias
from flaxformer.step import Step
from tests.contracts import models

ROWS, PROMPT, TOTAL = 3, 4, 7
LENGTHS = np.array([4, 1, 3])  # real prompt tokens per row; row b then holds LENGTHS[b] + 3 tokens in all
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2}

POSITIONS = {"none": None, "rotary": Rotary(), "partial": Rotary(fraction=0.5, interleaved=True), "bias": "bias"}
MASKS = {"causal": Causal(), "window": Window(left=2, right=0)}
ATTENTIONS = ("multi_head", "grouped", "single", "multi_query")


def convolved(kind: str = "multi_head"):
    return models.attention(kind, **{name: models.convolve() for name in ("q_conv", "k_conv", "v_conv")})


def real_columns(side: str) -> np.ndarray:
    """Columns of each row's prompt tokens in a prompt padded on `side`, `[ROWS, PROMPT]` bool."""
    columns = np.arange(PROMPT)[None]
    return columns < LENGTHS[:, None] if side == "right" else columns >= PROMPT - LENGTHS[:, None]


def prompt_of(rows: np.ndarray, side: str) -> np.ndarray:
    """The first LENGTHS[b] entries of each row `[ROWS, TOTAL, ...]`, padded on `side`, garbage elsewhere."""
    prompt = np.full((ROWS, PROMPT, *rows.shape[2:]), 3, rows.dtype)
    real = real_columns(side)
    for b in range(ROWS):
        prompt[b, real[b]] = rows[b, : LENGTHS[b]]
    return prompt


def generated(rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """`count` entries of each row from LENGTHS[b] + start on."""
    return np.stack([rows[b, LENGTHS[b] + start : LENGTHS[b] + start + count] for b in range(ROWS)])


def run_cached(call, rows: np.ndarray, side: str, chunks: tuple[int, ...]) -> list[np.ndarray]:
    """Per row, the outputs at its real tokens, from a prefill and then `chunks` tokens at a time.

    `call(inputs, step, collections) -> (outputs [ROWS T ...], collections)`.
    """
    step = Step.start(jnp.asarray(real_columns(side)), PROMPT + sum(chunks))
    outputs, collections = call(prompt_of(rows, side), step, {})
    collected = [[outputs[b][real_columns(side)[b]]] for b in range(ROWS)]
    start = 0
    for size in chunks:
        step = step.advance(size)
        outputs, collections = call(generated(rows, start, size), step, collections)
        for b in range(ROWS):
            collected[b].append(outputs[b])
        start += size
    return [np.concatenate([np.asarray(x, np.float32) for x in parts]) for parts in collected]


def bias_at(table, q_positions, k_positions):
    return relative_bias(table, q_positions, k_positions, bidirectional=False, max_distance=8)


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_layer(kind, positions, mask):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, TOTAL, models.WIDTH)).astype(np.float32)
    scheme = POSITIONS[positions] if positions != "bias" else None
    table = jnp.asarray(rng.normal(size=(models.HEADS, 6)), jnp.float32) if positions == "bias" else None
    layer = models.attention(kind, positions=scheme)
    params = layer.init(jax.random.key(0), rows, rows)["params"]
    offsets = jnp.arange(TOTAL)[None]
    bias = None if table is None else bias_at(table, offsets, offsets)
    for dtype, side in itertools.product(TOLERANCE, ("left", "right")):
        layer_as = layer.clone(dtype=dtype)
        expected = np.asarray(layer_as.apply({"params": params}, rows, rows, MASKS[mask], bias), np.float32)

        def call(x, step, collections, layer=layer_as):
            here = None if table is None else bias_at(table, step.positions, step.key_positions)
            return layer.apply({"params": params, **collections}, x, x, MASKS[mask], here, step=step, mutable=["cache"])

        for chunks in ((1, 1, 1), (2, 1)) if side == "left" else ((1, 1, 1),):
            for b, output in enumerate(run_cached(call, rows, side, chunks)):
                np.testing.assert_allclose(
                    output, expected[b, : len(output)], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
                )


@pytest.mark.parametrize("kind", ["multi_head", "grouped"])
def test_convolved_attention_layer(kind):
    rows = np.random.default_rng(1).normal(size=(ROWS, TOTAL, models.WIDTH)).astype(np.float32)
    layer = convolved(kind)
    params = layer.init(jax.random.key(0), rows, rows)["params"]
    expected = layer.apply({"params": params}, rows, rows, Causal())

    def call(x, step, collections):
        return layer.apply({"params": params, **collections}, x, x, Causal(), step=step, mutable=["cache"])

    for side, chunks in (("left", (2, 1)), ("right", (1, 1, 1))):
        for b, output in enumerate(run_cached(call, rows, side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=2e-5, rtol=2e-5)


DECODER_ONLY = {
    "shared_bias": models.decoder_only(),
    "bias_per_layer": models.decoder_only(per_layer_bias=True),
    "scanned": models.decoder_only(scan=True),
    "rotary": models.decoder_only(bias=False, make_attention=lambda: models.attention(positions=Rotary())),
    "parallel": models.decoder_only(parallel=True),
    "multi_query, sinusoidal positions": models.decoder_only(
        make_attention=lambda: models.attention("multi_query"),
        position_embedder_factory=lambda: models.embedding.FixedEmbed(models.WIDTH, max_length=16),
    ),
    "convolutions": models.decoder_only(
        make_attention=convolved,
        make_mlp=lambda: models.mlp(intermediate_conv=models.convolve(1)),
        norm=lambda: models.layer_norm_factory(conv=models.convolve(1))(),
    ),
    "learned_positions": models.decoder_only(
        bias=False, position_embedder_factory=lambda: models.embedding.PositionEmbed(16, models.WIDTH)
    ),
    "fused": models.fused_decoder_only(),
}


@pytest.mark.parametrize("name", DECODER_ONLY)
def test_decoder_only(name):
    model = DECODER_ONLY[name]
    tokens = np.random.default_rng(2).integers(1, models.VOCABULARY, (ROWS, TOTAL))
    params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]
    expected = model.apply({"params": params}, tokens, tokens, enable_dropout=False)

    @jax.jit
    def call(x, step, collections):
        return model.apply(
            {"params": params, **collections}, x, step=step, enable_dropout=False, mutable=["cache", "cross_cache"]
        )

    for side, chunks in (("left", (1, 1, 1)), ("right", (2, 1))):
        for b, output in enumerate(run_cached(call, tokens, side, chunks)):
            np.testing.assert_allclose(output, expected[b, : len(output)], atol=3e-5, rtol=3e-5)


ENCODER_DECODER = {
    "shared_bias": models.encoder_decoder(),
    "scanned": models.encoder_decoder(scan=True),
    "remat": models.encoder_decoder(remat="full"),
    "grouped": models.encoder_decoder(make_attention=lambda: models.attention("grouped")),
    "rotary": models.encoder_decoder(bias=False, make_attention=lambda: models.attention(positions=Rotary())),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "remat" else []) for name in ENCODER_DECODER]
)
def test_encoder_decoder_with_beams_over_one_encoded_batch(name):
    model, beams = ENCODER_DECODER[name], 2
    rng = np.random.default_rng(3)
    source = rng.integers(1, models.VOCABULARY, (ROWS, 5)) * (np.arange(5) < np.array([[5], [2], [4]]))
    target = rng.integers(1, models.VOCABULARY, (ROWS * beams, TOTAL))
    repeated = np.repeat(source, beams, 0)
    params = model.init(jax.random.key(0), repeated, target, target, enable_dropout=False)["params"]
    expected = model.apply({"params": params}, repeated, target, target, enable_dropout=False)
    encoded = model.apply({"params": params}, source, enable_dropout=False, method="encode")

    def call(tokens, step, collections, mutable):
        return model.apply(
            {"params": params, **collections},
            encoded,
            source,
            tokens,
            step=step,
            enable_dropout=False,
            method="decode",
            mutable=mutable,
        )

    step = Step.start(jnp.ones((1, 3), bool), TOTAL)
    prefill = jax.jit(lambda x, s: call(x, s, {}, ["cache", "cross_cache"]))
    outputs, collections = prefill(target[:, :3], step)
    np.testing.assert_allclose(outputs, expected[:, :3], atol=3e-5, rtol=3e-5)
    kept = collections["cross_cache"]
    batch_axis = 1 if model.scan_layers else 0
    assert {x.shape[batch_axis] for x in jax.tree.leaves(kept)} == {ROWS}
    continue_with = jax.jit(lambda x, s, c: call(x, s, {"cache": c, "cross_cache": kept}, ["cache"]))
    cache, done = collections["cache"], 3
    for size in (1, 2, 1):
        step = step.advance(size)
        outputs, updated = continue_with(target[:, done : done + size], step, cache)
        np.testing.assert_allclose(outputs, expected[:, done : done + size], atol=3e-5, rtol=3e-5)
        cache, done = updated["cache"], done + size


def test_a_write_past_the_end_is_dropped():
    rows = np.random.default_rng(4).normal(size=(1, 3, models.WIDTH)).astype(np.float32)
    layer = models.attention()
    params = layer.init(jax.random.key(0), rows, rows)["params"]
    step = Step.start(jnp.ones((1, 3), bool), 4)
    _, full = layer.apply({"params": params}, rows, rows, Causal(), step=step, mutable=["cache"])
    for size, slots in ((1, (5, 9)), (3, (2, 4))):
        for slot in slots:
            x = rows[:, :size]
            late = step.advance(size).replace(slot=jnp.int32(slot))
            _, cache = layer.apply({"params": params, **full}, x, x, Causal(), step=late, mutable=["cache"])
            kept = min(slot, 4)
            before, after = full["cache"]["cached_key"], cache["cache"]["cached_key"]
            np.testing.assert_array_equal(after[..., :kept], before[..., :kept])
            if slot < 4:
                assert not np.allclose(after[..., slot:], before[..., slot:])
