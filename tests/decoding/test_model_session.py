"""Real models: what is decoded through caches has the scores of one uncached pass."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.components.convolution import Depthwise1dConv
from flaxformer.decoding import BeamSearch, Greedy, generate
from flaxformer.decoding.model_session import Memory, ModelSession
from flaxformer.decoding.prompts import make_prompts
from flaxformer.step import Step
from tests.contracts import models
from tests.golden import build

EOS, STEPS = 1, 5
ENCODER_DECODERS = ["encdec_v10", "encdec_v11", "encdec_parallel", "encdec_learned_pos", "encdec_scan"]
DECODERS = ["declm", "declm_tied", "declm_fixed_pos", "declm_learned_pos", "declm_parallel_fused", "declm_scan"]
SOURCE = np.array([[5, 3, 6, 2, 4], [4, 4, 0, 0, 0]])
PROMPTS = np.array([[3, 5, 0], [0, 0, 4]])


@functools.cache
def model_of(name):
    case = build.load(name)
    module = build.resolve(case.description["target"])(**build.build(case.description["constructor"]))
    return module, {"params": jax.tree.map(jnp.asarray, case.tree("params"))}


@functools.cache
def compiled(name):
    module, _ = model_of(name)
    return jax.jit(functools.partial(module.apply, enable_dropout=False))


def full_pass(name, item, tokens):
    """Log-probabilities of what follows each token, in one uncached pass over a padded row."""
    row = np.zeros((1, 12), np.int32)
    row[0, : len(tokens)] = tokens
    targets = np.ones_like(row) * (np.arange(12) < len(tokens))
    arguments = (row, targets) if name in DECODERS else (SOURCE[item : item + 1], row, targets)
    logits = np.asarray(compiled(name)(model_of(name)[1], *arguments), np.float32)[0, : len(tokens)]
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def inputs_of(name, prompts):
    return prompts if name in DECODERS else {"encoder_input_tokens": SOURCE, "decoder_prompt_tokens": prompts}


@pytest.mark.parametrize("name", ENCODER_DECODERS + DECODERS)
def test_scores_of_a_beam_are_those_of_the_uncached_model(name):
    """Ragged prompts, cross-attention shared by beams, and reordered caches all have to be right for this."""
    strategy = BeamSearch(num_beams=3, alpha=0.0)
    options = {"strategy": strategy, "max_new_tokens": STEPS, "eos_id": EOS}
    found = generate(*model_of(name), inputs_of(name, PROMPTS), **options)
    checked = 0
    for item, prompt in enumerate(PROMPTS):
        read = [0, *prompt[prompt != 0]]
        for tokens, score, length in zip(*(np.asarray(x)[item] for x in found), strict=True):
            tokens = tokens[:length]
            if length == 0 or 0 in tokens:  # an uncached pass takes a generated 0 for padding
                continue
            sequence = [*read, *tokens]
            log_probs = full_pass(name, item, sequence[:-1])[len(read) - 1 :]
            np.testing.assert_allclose(score, log_probs[np.arange(length), tokens].sum(), rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked


@pytest.mark.parametrize("name", ["encdec_v11", "encdec_scan"])
def test_the_rows_of_one_item_share_its_encoder_keys_and_values(name):
    """Neither the caches of the encoder nor its output are tiled for beams."""
    module, variables = model_of(name)
    session = ModelSession(module)

    @jax.jit
    def start(variables):
        context = session.open(variables, {"encoder_input_tokens": SOURCE})
        return session.prefill(context, make_prompts({}, 2, 0), 4)[1:]

    context, memory = start(variables)
    row_axis = 0 if memory.stacked is None else 1
    assert memory.stacked == (("decoder", "decoder") if name == "encdec_scan" else None)
    assert context.encoded.shape[0] == 2
    for leaf in jax.tree.leaves(context.variables["cross_cache"]):
        assert leaf.shape[row_axis] == 2
    wide = session.expand(memory, 3)
    for leaf, wider in zip(jax.tree.leaves(memory.cache), jax.tree.leaves(wide.cache), strict=True):
        np.testing.assert_array_equal(wider, np.repeat(leaf, 3, axis=row_axis))
    step = jax.jit(session.step)
    logits, _ = step(context, wide, jnp.array([2, 3, 4, 2, 3, 4]))
    for beam in range(3):
        alone, _ = step(context, memory, jnp.array([2 + beam] * 2))
        np.testing.assert_allclose(logits[beam::3], alone, rtol=1e-4, atol=1e-5)


def test_reordering_moves_rows_of_the_cache_only():
    module, _ = model_of("encdec_scan")
    session = ModelSession(module)
    step = Step.start(jnp.ones((1, 1), bool), 4)
    cache = {
        "layer": {"cached_key": jnp.arange(12.0).reshape(2, 3, 2), "cache_index": jnp.arange(3)},
        "norm": {"cached_x_0": jnp.arange(3.0)},
    }
    moved = session.reorder(Memory(cache, step, stacked=("layer",)), jnp.array([2, 0, 0]))
    np.testing.assert_array_equal(moved.cache["layer"]["cached_key"], cache["layer"]["cached_key"][:, [2, 0, 0]])
    np.testing.assert_array_equal(moved.cache["layer"]["cache_index"], [0, 1, 2])
    np.testing.assert_array_equal(moved.cache["norm"]["cached_x_0"], [2, 0, 0])


def test_a_convolving_norm_behind_scanned_layers_decodes():
    """Its cache has rows in front, those of the layers have them behind the axis of layers."""
    convolution = functools.partial(Depthwise1dConv, axis_names=["embed"])
    model = models.decoder_only(scan=True, layers=1, norm=convolution)
    params = jax.jit(model.init)(jax.random.key(0), PROMPTS, PROMPTS)["params"]
    moved = {"params": jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)}
    prompts = np.array([[3, 5], [2, 4]])
    found = generate(model, moved, prompts, strategy=BeamSearch(2, alpha=0.0), max_new_tokens=3, eos_id=EOS)
    read = np.concatenate([np.repeat(np.pad(prompts, [(0, 0), (1, 0)]), 2, axis=0), found.tokens.reshape(4, 3)], axis=1)
    logits = model.apply(moved, read, decoder_valid=np.ones_like(read), enable_dropout=False)
    behind = jax.nn.log_softmax(logits)[:, 2:-1]
    token_scores = jnp.take_along_axis(behind, read[:, 3:, None], axis=-1)[..., 0].reshape(2, 2, 3)
    expected = (token_scores * (np.arange(3) < found.lengths[..., None])).sum(-1)
    np.testing.assert_allclose(found.scores, expected, atol=2e-5)


def test_a_prefix_language_model_reads_its_prompt_in_both_directions():
    name, strategy = "declm", Greedy()
    prompts = np.array([[3, 5, 4], [6, 4, 0]])
    options = {"strategy": strategy, "max_new_tokens": 3, "eos_id": EOS}
    causal = generate(*model_of(name), prompts, **options)
    flags = (prompts > 0).astype(np.int32)
    named = {"decoder_prompt_tokens": prompts, "decoder_causal_attention": flags}
    both = generate(*model_of(name), named, **options)
    assert not np.allclose(causal.scores, both.scores)
    _, variables = model_of(name)
    for item, prompt in enumerate(prompts):
        sequence = [0, *prompt[prompt != 0]]
        length = int(both.lengths[item, 0])
        tokens = np.asarray(both.tokens)[item, 0, :length]
        row = np.array([[*sequence, *tokens[:-1]]])
        seen = (np.arange(row.shape[1]) < len(sequence))[None].astype(np.int32)
        logits = compiled(name)(variables, row, np.ones_like(row), decoder_causal_attention=seen)
        log_probs = jax.nn.log_softmax(logits[0, len(sequence) - 1 :])
        expected = float(log_probs[jnp.arange(length), tokens].sum())
        np.testing.assert_allclose(both.scores[item, 0], expected, rtol=1e-4, atol=1e-4)


class OddCache(nn.Module):
    """Keeps an array whose rows nobody can find."""

    @nn.compact
    def __call__(self, tokens, targets, *, step, enable_dropout):
        self.put_variable("cache", "state", jnp.zeros((7, 7)))
        return jnp.zeros((*tokens.shape, 5))


def test_a_cache_without_its_rows_is_refused():
    with pytest.raises(ValueError, match=r"cache array of shape \(7, 7\); expected 2 rows on axis 0, one per prompt"):
        generate(OddCache(), {"params": {}}, PROMPTS, strategy=Greedy(), max_new_tokens=2, eos_id=EOS)


def test_position_tables_limit_the_length():
    model, variables = model_of("encdec_learned_pos")
    limits = ModelSession(model).longest_sequences(variables)
    source = np.ones((1, limits["encoder"] + 1), np.int32)
    with pytest.raises(ValueError, match="expected at most .*, the size of the encoder's"):
        generate(model, variables, source, strategy=Greedy(), max_new_tokens=2, eos_id=EOS)
    tokens = limits["decoder"] + 1
    with pytest.raises(ValueError, match=f"would read {tokens} positions .* at most {tokens - 1}, the size of its"):
        generate(model, variables, SOURCE, strategy=Greedy(), max_new_tokens=tokens, eos_id=EOS)
    with pytest.raises(ValueError, match="bos_id is None; expected the id that this encoder-decoder"):
        generate(model, variables, SOURCE, strategy=Greedy(), max_new_tokens=2, eos_id=EOS, bos_id=None)


def test_fixed_position_tables_limit_the_length_too():
    model, variables = model_of("encdec_fixed_pos")
    limit = ModelSession(model).longest_sequences(variables)["decoder"]
    with pytest.raises(ValueError, match=f"would read {limit + 1} positions"):
        generate(model, variables, SOURCE, strategy=Greedy(), max_new_tokens=limit + 1, eos_id=EOS)


def test_known_ids_are_checked_while_something_else_is_traced():
    model, variables = model_of("encdec_fixed_pos")
    size = ModelSession(model).vocabulary_sizes(variables)["encoder"]

    def run(ids):
        options = {"strategy": Greedy(), "max_new_tokens": 2, "eos_id": EOS}
        return jax.eval_shape(lambda v: generate(model, v, {"encoder_input_tokens": ids}, **options), variables)

    assert run(jnp.array([[1, size - 1]])).tokens.shape == (1, 1, 2)
    with pytest.raises(ValueError, match=f"holds ids from 1 to {size}"):
        run(jnp.array([[1, size]]))


def test_ids_outside_the_vocabulary_and_wrong_strategies_are_refused():
    model, variables = model_of("encdec_fixed_pos")
    size = ModelSession(model).vocabulary_sizes(variables)["encoder"]
    for ids in ([[1, size]], [[-1, 1]]):
        with pytest.raises(ValueError, match=f"holds ids from .*; expected 0 to {size - 1}, the encoder's vocabulary"):
            generate(model, variables, np.array(ids), strategy=Greedy(), max_new_tokens=2, eos_id=EOS)
    with pytest.raises(ValueError, match="'encoder_input_tokens' is of type float64; expected integers"):
        generate(model, variables, SOURCE * 1.0, strategy=Greedy(), max_new_tokens=2, eos_id=EOS)
    for strategy in (Greedy, "greedy"):
        with pytest.raises(ValueError, match="expected a strategy object such as"):
            generate(model, variables, SOURCE, strategy=strategy, max_new_tokens=2, eos_id=EOS)


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(2)], ids=["greedy", "beam"])
def test_a_start_token_alone_is_read_by_the_first_step(strategy):
    """So that the decoder's layers are compiled once, inside the loop."""
    model, variables = model_of("encdec_v11")
    options = {"strategy": strategy, "max_new_tokens": 3, "eos_id": EOS}
    program = jax.jit(lambda variables: generate(model, variables, SOURCE, **options)).lower(variables).compile()
    products = [line for line in program.as_text().splitlines() if "decoder/" in line and "/mlp/w" in line]
    assert products and all("while/body" in line for line in products)
