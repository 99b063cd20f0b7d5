"""Every model, kind of cache and strategy: what is decoded through a cache has the score of one uncached pass."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.caches import FullCache, QuantizedCache, RingCache
from flaxformer.components.positions.rotary import Rotary
from flaxformer.decoding import BeamSearch, Greedy, Sample, generate
from tests.contracts import models

LENGTH, STEPS = 12, 5
SOURCE = np.array([[5, 3, 6, 2, 4], [4, 4, 0, 0, 0]])
PROMPTS = np.array([[3, 5, 0, 0, 0, 0], [7, 8, 9, 4, 6, 2]])  # shorter and longer than the window

CACHES = {"full": FullCache(), "bfloat16": FullCache("bfloat16"), "int8": QuantizedCache(), "ring": RingCache(3)}
BOUNDS = {"full": 1e-4, "ring": 1e-4, "bfloat16": 0.05, "int8": 0.05}  # of a sequence's log-probability
STRATEGIES = {
    "greedy": Greedy(),
    "beam": BeamSearch(num_beams=3, alpha=0.0),
    "sample": Sample(num_samples=2, rescale_log_probs=False),
}


def _attention(kind, cache):
    return lambda: models.attention(kind, positions=Rotary(), cache=cache)


MODELS = {
    "rotary": lambda cache: models.decoder_only(bias=False, make_attention=_attention("multi_head", cache)),
    "multi_query": lambda cache: models.decoder_only(bias=False, make_attention=_attention("multi_query", cache)),
    "grouped": lambda cache: models.decoder_only(bias=False, make_attention=_attention("grouped", cache)),
    "scanned": lambda cache: models.decoder_only(bias=False, scan=True, make_attention=_attention("grouped", cache)),
    "relative": lambda cache: models.decoder_only(make_attention=lambda: models.attention(cache=cache)),
    "encoder_decoder": lambda cache: models.encoder_decoder(make_attention=lambda: models.attention(cache=cache)),
}
WITHOUT_RING = ("relative", "encoder_decoder")  # their bias is an array for every slot, and refused
SAMPLE = {
    ("rotary", "ring", "greedy"), ("scanned", "ring", "beam"), ("grouped", "full", "sample"),
    ("encoder_decoder", "int8", "beam"), ("multi_query", "bfloat16", "beam"),
}  # fmt: skip


@functools.cache
def made(model, cache):
    module = MODELS[model](CACHES[cache])
    zeros = jnp.zeros((1, LENGTH), jnp.int32)
    arguments = (zeros,) * (3 if model == "encoder_decoder" else 2)
    init = jax.jit(lambda key: module.init(key, *arguments, enable_dropout=False)["params"])
    return module, {"params": init(jax.random.key(0))}, jax.jit(functools.partial(module.apply, enable_dropout=False))


def uncached(model, cache, item, tokens):
    """The log-probabilities of what follows each token, from one pass over a padded row."""
    row = np.zeros((1, LENGTH), np.int32)
    row[0, : len(tokens)] = tokens
    real = (np.arange(LENGTH) < len(tokens))[None].astype(np.int32)
    source = (SOURCE[item : item + 1],) if model == "encoder_decoder" else ()
    _, variables, apply = made(model, cache)
    return np.asarray(jax.nn.log_softmax(apply(variables, *source, row, real)))[0, : len(tokens)]


def combinations():
    for model, cache, strategy in itertools.product(MODELS, CACHES, STRATEGIES):
        if cache == "ring" and model in WITHOUT_RING:
            continue
        marks = () if (model, cache, strategy) in SAMPLE else pytest.mark.slow
        yield pytest.param(model, cache, strategy, marks=marks)


@pytest.mark.parametrize(("model", "cache", "strategy"), list(combinations()))
def test_scores_through_a_cache_are_those_of_an_uncached_pass(model, cache, strategy):
    module, variables, _ = made(model, cache)
    inputs = {"decoder_prompt_tokens": PROMPTS}
    if model == "encoder_decoder":
        inputs["encoder_input_tokens"] = SOURCE
    options = {"strategy": STRATEGIES[strategy], "max_new_tokens": STEPS, "eos_id": 1}
    found = generate(module, variables, inputs, **options, rng=jax.random.key(3))
    checked = 0
    for item, prompt in enumerate(PROMPTS):
        read = [0, *prompt[prompt != 0]]
        for tokens, score, length in zip(*(np.asarray(x)[item] for x in found), strict=True):
            tokens = tokens[:length]
            if length == 0 or 0 in tokens:  # an uncached pass takes a generated 0 for padding
                continue
            log_probs = uncached(model, cache, item, [*read, *tokens][:-1])[len(read) - 1 :]
            expected = log_probs[np.arange(length), tokens].sum()
            np.testing.assert_allclose(score, expected, rtol=0, atol=BOUNDS[cache])
            checked += 1
    assert checked


def test_a_ring_beside_a_bias_for_every_slot_is_refused():
    module, variables, _ = made("relative", "ring")
    with pytest.raises(ValueError, match="holds 3 keys; expected a bias for these"):
        generate(module, variables, PROMPTS, strategy=Greedy(), max_new_tokens=4, eos_id=1)
