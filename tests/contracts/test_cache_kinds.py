"""Every model, kind of cache and strategy: what is decoded through a cache has the score of one uncached pass."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.attention.caches import FullCache, QuantizedCache, RingCache
from flaxformer.components.attention.feature_maps import EluFeatures
from flaxformer.components.attention.latent_attention import MultiHeadLatentAttention
from flaxformer.components.attention.linear_attention import LinearAttention
from flaxformer.components.positions.rotary import Rotary
from flaxformer.decoding import (
    Banned,
    BeamSearch,
    Contrastive,
    DiverseBeamSearch,
    DraftModel,
    Greedy,
    LengthPenalty,
    PromptLookup,
    Sample,
    generate,
)
from flaxformer.weights.pretrained import load_pretrained
from tests.contracts import models
from tests.parity.recorded import FIXTURES

LENGTH, STEPS = 12, 5
SOURCE = np.array([[5, 3, 6, 2, 4], [4, 4, 0, 0, 0]])
PROMPTS = np.array([[3, 5, 0, 0, 0, 0], [7, 8, 9, 4, 6, 2]])  # shorter and longer than the window

CACHES = {"full": FullCache(), "bfloat16": FullCache("bfloat16"), "int8": QuantizedCache(), "ring": RingCache(3)}
CACHES["own"] = FullCache()  # not asked for: the model has its own
BOUNDS = {"full": 1e-4, "own": 1e-4, "ring": 1e-4, "bfloat16": 0.05, "int8": 0.05}  # of a sequence's log-probability
STRATEGIES = {  # whose scores are plain log-probabilities
    "greedy": Greedy(),
    "beam": BeamSearch(num_beams=3, alpha=0.0),
    "sample": Sample(num_samples=2, rescale_log_probs=False),
    "diverse": DiverseBeamSearch(4, 2, diversity=0.0, rule=LengthPenalty(0.0)),
    "contrastive": Contrastive(3, 0.5),
    "lookup": Greedy(),
    "draft": Sample(num_samples=2, rescale_log_probs=False),
}
DRAFTS = ("lookup", "draft")


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
LATENT = {"num_heads": models.HEADS, "latent_width": 8, "head_dim": 4, "rotary_dim": 4}
LINEAR = {"num_heads": models.HEADS, "head_dim": 4, "use_bias": False, "positions": Rotary(), "features": EluFeatures()}
MODELS["latent"] = lambda cache: models.decoder_only(
    bias=False, make_attention=lambda: MultiHeadLatentAttention(cache=cache, **LATENT)
)
MODELS["linear"] = lambda _: models.decoder_only(bias=False, make_attention=lambda: LinearAttention(**LINEAR))
PUBLISHED = ("gpt2", "llama", "gemma3_text", "t5", "bart")
WITH_OWN = ("linear", *PUBLISHED)
WITH_ENCODER = ("encoder_decoder", "t5", "bart")
WITHOUT_RING = ("relative", "encoder_decoder", "latent")  # a bias for every slot, or latents, which it refuses
SAMPLE = {
    ("latent", "full", "draft"), ("linear", "own", "contrastive"), ("gemma3_text", "own", "lookup"),
    ("rotary", "ring", "greedy"), ("grouped", "full", "sample"), ("encoder_decoder", "int8", "beam"),
    ("bart", "own", "contrastive"),  # no norm behind the last layer
}  # fmt: skip


@functools.cache
def made(model, cache):
    if model in PUBLISHED:
        module, variables = load_pretrained(FIXTURES / model)
        return module, variables, jax.jit(functools.partial(module.apply, enable_dropout=False))
    module = MODELS[model](CACHES[cache])
    zeros = jnp.zeros((1, LENGTH), jnp.int32)
    arguments = (zeros,) * (3 if model in WITH_ENCODER else 2)
    init = jax.jit(lambda key: module.init(key, *arguments, enable_dropout=False)["params"])
    return module, {"params": init(jax.random.key(0))}, jax.jit(functools.partial(module.apply, enable_dropout=False))


def uncached(model, cache, item, tokens):
    """The log-probabilities of what follows each token, from one pass over a padded row."""
    row = np.zeros((1, LENGTH), np.int32)
    row[0, : len(tokens)] = tokens
    real = (np.arange(LENGTH) < len(tokens))[None].astype(np.int32)
    source = {"encoder_input_tokens": sources(model)[item : item + 1]} if model in WITH_ENCODER else {}
    _, variables, apply = made(model, cache)
    named = {"decoder_input_tokens": row, "decoder_valid": real} if model in PUBLISHED else {}
    named = named or {"decoder_input_tokens": row, "decoder_target_tokens": real}
    return np.asarray(jax.nn.log_softmax(apply(variables, **source, **named)))[0, : len(tokens)]


@functools.cache
def ids(model):
    """What `generate` is told of start, end and padding."""
    if model not in PUBLISHED:
        return {"bos_id": 0, "eos_id": 1, "pad_id": 0}
    recorded = json.loads((FIXTURES / model / "generate.json").read_text())
    start = recorded.get("decoder_start_token_id")
    return {"bos_id": start, "eos_id": recorded["eos_token_id"], "pad_id": recorded["pad_token_id"]}


def sources(model):
    return np.where(SOURCE > 0, SOURCE, ids(model)["pad_id"])


def combinations():
    for model, cache, strategy in itertools.product((*MODELS, *PUBLISHED), CACHES, STRATEGIES):
        if (cache == "own") != (model in WITH_OWN) or (cache == "ring" and model in WITHOUT_RING):
            continue
        if strategy in DRAFTS and (cache == "ring" or model == "linear"):  # which take no token back, and refuse
            continue
        marks = () if (model, cache, strategy) in SAMPLE else pytest.mark.slow
        yield pytest.param(model, cache, strategy, marks=marks)


@pytest.mark.parametrize(("model", "cache", "strategy"), list(combinations()))
def test_scores_through_a_cache_are_those_of_an_uncached_pass(model, cache, strategy):
    module, variables, _ = made(model, cache)
    inputs = {"decoder_prompt_tokens": PROMPTS, "valid": PROMPTS > 0}
    if model in WITH_ENCODER:
        inputs["encoder_input_tokens"] = sources(model)
    drafts = {"lookup": PromptLookup(2), "draft": DraftModel(module, variables, length=2)}
    options = {"strategy": STRATEGIES[strategy], "max_new_tokens": STEPS, "draft": drafts.get(strategy), **ids(model)}
    options["constraints"] = (Banned((0,)),)  # an uncached pass takes it for padding; scores stay the model's own
    found = generate(module, variables, inputs, **options, rng=jax.random.key(3))
    checked = 0
    for item, prompt in enumerate(PROMPTS):
        start = ids(model)["bos_id"]
        read = [*([] if start is None else [start]), *prompt[prompt != 0]]
        for tokens, score, length in zip(*(np.asarray(x)[item] for x in found), strict=True):
            tokens = tokens[:length]
            if length == 0:
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
