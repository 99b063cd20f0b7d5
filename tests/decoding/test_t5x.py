"""T5X's recorded searches reproduce: tokens, scores, and how many steps were run."""

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.decoding import t5x
from tests.decoding.toy import ToyLanguageModel, call_arguments, case_names, load_case


def run_case(name, search):
    description, inputs, outputs = load_case(name)
    call = call_arguments(description, inputs)
    default = 4 if search is t5x.beam_search else 1
    model = ToyLanguageModel(inputs, call.get("num_decodes", default), call.get("cache_offset", 0))
    cache = model.cache(len(inputs["inputs"]), call.get("initial_index"))
    sequences, scores = search(jnp.asarray(inputs["inputs"]), cache, model, **call)
    jax.effects_barrier()
    np.testing.assert_array_equal(sequences, outputs["sequences"])
    np.testing.assert_allclose(scores, outputs["scores"], rtol=1e-5, atol=1e-5)
    assert model.calls == description["num_tokens_to_logits_calls"]


@pytest.mark.parametrize("name", case_names("decoding_beam_"))
def test_beam_search_reproduces_the_recorded_case(name):
    run_case(name, t5x.beam_search)


@pytest.mark.parametrize("name", case_names("decoding_temp_"))
def test_temperature_sample_reproduces_the_recorded_case(name):
    run_case(name, t5x.temperature_sample)


def test_masks_reproduce_the_recorded_case():
    _, inputs, outputs = load_case("decoding_topk_topp_masks")
    for name, expected in outputs.items():
        kind, number = name.split("_")
        if kind == "topk":
            masked = t5x.topk_mask(jnp.asarray(inputs["x"]), int(number), -1e7)
        else:
            masked = t5x.topp_mask(jnp.asarray(inputs["x"]), float(number), -1e7)
        np.testing.assert_array_equal(masked, expected, err_msg=name)


def test_helpers_reproduce_the_recorded_case():
    _, inputs, outputs = load_case("decoding_helpers")
    nested, indices = jnp.asarray(inputs["nested"]), jnp.asarray(inputs["beam_indices"])
    moved = jnp.moveaxis(nested, 2, 0)
    found = {
        "brevity_penalty": t5x.brevity_penalty(inputs["alpha"][:, None], inputs["length"][None]),
        "right_aligned": t5x.right_align_prompts(jnp.asarray(inputs["prompts"])),
        "left_aligned": t5x.left_align_prompts(jnp.asarray(inputs["prompts"])),
        "flat_batch_beam_expand": t5x.flat_batch_beam_expand(nested, 2),
        "flat_batch_beam_expand_offset1": t5x.flat_batch_beam_expand(nested, 2, offset=1),
        "gather_beams": t5x.gather_beams({"x": nested}, indices, 2, 3, 4)["x"],
        "cache_gather_beams_offset1": t5x.cache_gather_beams({"x": moved}, indices, 2, 3, 4, offset=1)["x"],
        "gather_topk_beams": t5x.gather_topk_beams({"x": nested}, nested[:, :, 0, 0], 2, 2)["x"],
    }
    assert found.keys() == outputs.keys()
    for name, expected in outputs.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def test_remove_prefix_reproduces_the_recorded_case():
    _, inputs, outputs = load_case("decoding_remove_prefix")
    removed = t5x.remove_prefix(jnp.asarray(inputs["sequence"]), jnp.asarray(inputs["prefix_length"]))
    np.testing.assert_array_equal(removed, outputs["output"])


def test_beam_dimensions_come_and_go():
    x = jnp.arange(24).reshape(2, 3, 4)
    added = t5x.add_beam_dim(x, 5, offset=1)
    assert added.shape == (2, 3, 5, 4)
    np.testing.assert_array_equal(added[:, :, 4], x)
    flat = t5x.flatten_beam_dim(added, offset=1)
    np.testing.assert_array_equal(flat, t5x.flat_batch_beam_expand(x, 5, offset=1))
    np.testing.assert_array_equal(t5x.unflatten_beam_dim(flat, 3, 5, offset=1), added)
    with pytest.raises(ValueError, match=r"axis 1 .* has size 15; expected batch_size \* beam_size = 3 \* 4"):
        t5x.unflatten_beam_dim(flat, 3, 4, offset=1)


def test_cache_map_leaves_alone_what_has_no_rows():
    cache = {"a": {"cached_key": 1, "cache_index": 1, "cached_bias": 1}, "position_embedder_index": 1}
    expected = {"a": {"cached_key": 2, "cache_index": 1, "cached_bias": 1}, "position_embedder_index": 1}
    assert t5x.cache_map(lambda x: x + 1, cache) == expected
    assert t5x.cache_map(lambda x: x + 1, cache, apply_to_index=True)["a"]["cache_index"] == 2
    frozen = t5x.cache_map(lambda x: x + 1, flax.core.freeze(cache))
    assert isinstance(frozen, flax.core.FrozenDict) and frozen == flax.core.freeze(expected)


def toy(num_decodes=1):
    _, inputs, _ = load_case("decoding_temp_zero")
    model = ToyLanguageModel(inputs, num_decodes)
    return jnp.asarray(inputs["inputs"]), model.cache(len(inputs["inputs"])), model


def test_callbacks_see_every_step():
    inputs, cache, model = toy()
    seen = []

    def watch(state):
        jax.debug.callback(lambda step: seen.append(int(step)), state.step)
        return state

    ban_all_but_five = lambda logits, state: jnp.where(jnp.arange(logits.shape[-1]) == 5, logits, -1e7)  # noqa: E731
    sequences, _ = t5x.temperature_sample(
        inputs, cache, model, eos_id=1, state_callback_fn=watch, logit_callback_fn=ban_all_but_five
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(sequences, jnp.full_like(sequences, 5))
    assert seen == list(range(inputs.shape[1] + 1))


def test_temperature_sample_refuses_what_cannot_work():
    inputs, cache, model = toy()
    with pytest.raises(ValueError, match="topk=2 and topp=0.5 were given together"):
        t5x.temperature_sample(inputs, cache, model, eos_id=1, topk=2, topp=0.5)
    with pytest.raises(ValueError, match="max_decode_steps is 8; expected at most the 7 columns"):
        t5x.temperature_sample(inputs, cache, model, eos_id=1, max_decode_steps=8)
