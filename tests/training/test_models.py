"""T5X's recorded predictions and scores of whole models reproduce."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from flaxformer.components import embedding
from flaxformer.decoding import BeamSearch, Greedy, t5x
from flaxformer.training import models
from tests.contracts import models as parts
from tests.decoding.toy import case_names, load_case
from tests.golden.build import resolve


def build(value):
    """The value that a recorded description stands for."""
    if isinstance(value, list):
        return [build(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$dtype" in value:
        return jnp.dtype(value["$dtype"])
    if "$tuple" in value:
        return tuple(build(value["$tuple"]))
    if "$factory" in value:
        return lambda **more: resolve(value["$factory"])(**build(value["kwargs"]), **more)
    if "$new" in value:
        return resolve(value["$new"])(**build(value["kwargs"]))
    return {key: build(item) for key, item in value.items()}


def load_model(name):
    """The recorded model, parameters, inputs, outputs and call."""
    description, inputs, outputs, params = load_case(name, with_params=True)
    made = build(description["constructor"])
    made["decode_fn"] = getattr(t5x, made["decode_fn"].rsplit(".", 1)[1])
    vocabulary = types.SimpleNamespace(eos_id=made.pop("eos_id"))
    kind = getattr(models, description["import_path"].rsplit(".", 1)[1])
    vocabularies = (vocabulary,) * (2 if kind is models.EncoderDecoderModel else 1)
    model = kind(made.pop("module"), *vocabularies, None, **made)
    params = traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in params.items()}, sep="/")
    return model, params, inputs, outputs, description["call"]


@pytest.mark.parametrize("name", case_names("decoding_model_"))
def test_predictions_and_scores_reproduce_the_recorded_case(name):
    model, params, inputs, outputs, call = load_model(name)
    batch = {key: jnp.asarray(x) for key, x in inputs.items() if not key.startswith("score_")}
    given = dict(call["decoder_params"])
    predictions, aux = model.predict_batch_with_aux(params, batch, **{**call, "decoder_params": given})
    np.testing.assert_array_equal(predictions, outputs["predictions"])
    np.testing.assert_allclose(aux["scores"], outputs["scores"], rtol=1e-4, atol=1e-4)
    assert given == call["decoder_params"]
    scored = {k.removeprefix("score_"): jnp.asarray(x) for k, x in inputs.items() if k.startswith("score_")}
    scores = model.score_batch(params, batch | scored)
    np.testing.assert_allclose(scores, outputs["score_batch"], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def encoder_decoder():
    model, params, inputs, *_ = load_model("decoding_model_encdec_beam_top1")
    targets = jnp.asarray(inputs["score_decoder_target_tokens"])
    batch = {
        "encoder_input_tokens": jnp.asarray(inputs["encoder_input_tokens"]),
        "decoder_input_tokens": jnp.asarray(inputs["score_decoder_input_tokens"]),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": jnp.asarray(inputs["score_decoder_loss_weights"]),
    }
    return model, params, batch


@pytest.fixture(scope="module")
def decoder_only():
    model, params, inputs, *_ = load_model("decoding_model_decoder_only_prefix_lm")
    return model, params, {key: jnp.asarray(x) for key, x in inputs.items()}


def test_the_loss_is_the_negative_score(encoder_decoder):
    model, params, batch = encoder_decoder
    loss, metrics = model.eval_fn(params, batch)
    np.testing.assert_allclose(loss, -jnp.sum(model.score_batch(params, batch)), rtol=1e-5)
    counted = float(jnp.sum(batch["decoder_loss_weights"]))
    per_token = metrics["loss_per_nonpadding_target_token"].compute()
    np.testing.assert_allclose(per_token, loss / counted, rtol=1e-5)


def test_metrics_have_the_names_of_t5x(encoder_decoder):
    model, params, batch = encoder_decoder
    _, metrics = model.loss_fn(params, batch, None)
    features = ("encoder_input_tokens", "decoder_target_tokens")
    assert {
        *("accuracy", "loss", "z_loss", "cross_ent_loss"),
        *("loss_per_nonpadding_target_token", "loss_per_all_target_tokens"),
        *("z_loss_per_all_target_tokens", "cross_ent_loss_per_all_target_tokens"),
        *("timing/seqs_per_second", "timing/steps_per_second", "timing/seconds", "timing/seqs"),
        *("timing/seqs_per_second_per_core", "timing/target_tokens_per_second"),
        *("timing/target_tokens_per_second_per_core", "non_padding_fraction/loss_weights"),
        *(f"{kind}/{feature}" for kind in ("non_padding_fraction", "effective_batch_size") for feature in features),
        "non_padding_fraction/overall",
    } == set(metrics)


def test_intermediates_of_scoring_hold_the_token_scores(encoder_decoder):
    model, params, batch = encoder_decoder
    scores, intermediates = model.score_batch(params, batch, return_intermediates=True)
    (token_scores,) = intermediates["decoder"]["token_scores"]
    np.testing.assert_allclose(token_scores.sum(axis=1), scores, rtol=1e-6)
    np.testing.assert_array_equal(intermediates["decoder"]["target_tokens"][0], batch["decoder_target_tokens"])
    np.testing.assert_array_equal(intermediates["decoder"]["loss_weights"][0], batch["decoder_loss_weights"])


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_initial_variables_have_the_shapes_of_the_parameters(encoder_decoder, decoder_only):
    for model, params, batch in (encoder_decoder, decoder_only):
        sizes = {name: x.shape for name, x in batch.items()}
        found = jax.eval_shape(lambda key, model=model, sizes=sizes: model.get_initial_variables(key, sizes), KEY)
        assert shapes_of(found["params"]) == shapes_of(params)


KEY = jax.random.PRNGKey(0)
GREEDY = ["decoding_model_encdec_prompt_greedy", "decoding_model_decoder_only_prefix_lm"]
GREEDY += [pytest.param(f"decoding_model_{name}", marks=pytest.mark.slow) for name in (
    "encdec_greedy", "decoder_only_causal")]  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_a_strategy_of_ours_writes_what_t5xs_function_did(name):
    model, params, inputs, outputs, call = load_model(name)
    model._decode_fn = Greedy()
    batch = {key: jnp.asarray(x) for key, x in inputs.items() if not key.startswith("score_")}
    options = {key: value for key, value in call.items() if key in ("prompt_with_targets", "return_all_decodes")}
    predictions, aux = model.predict_batch_with_aux(params, batch, **options)
    np.testing.assert_array_equal(predictions, outputs["predictions"])
    assert aux["scores"].shape == outputs["scores"].shape


def test_a_strategy_of_ours_returns_its_own_number_with_the_best_last(encoder_decoder):
    model, params, batch = encoder_decoder
    module, vocabulary = model.module, model.output_vocabulary
    beams = models.EncoderDecoderModel(module, None, vocabulary, None, decode_fn=BeamSearch(num_beams=3, num_return=2))
    sequences, aux = beams.predict_batch_with_aux(params, batch, return_all_decodes=True)
    rows, length = batch["decoder_input_tokens"].shape
    assert sequences.shape == (rows, 2, length) and bool(jnp.all(jnp.diff(aux["scores"]) >= 0))
    np.testing.assert_array_equal(beams.predict_batch(params, batch), sequences[:, -1])
    with pytest.raises(ValueError, match=r"decoder_params has \['alpha'\], and decode_fn is BeamSearch"):
        beams.predict_batch_with_aux(params, batch, decoder_params={"alpha": 1.0})
    with pytest.raises(ValueError, match="num_decodes is 4 and BeamSearch.* returns 2; expected the same"):
        beams.predict_batch_with_aux(params, batch, num_decodes=4)


def test_the_default_decoder_parameters_hold_when_nothing_is_said():
    model, params, inputs, outputs, _ = load_model("decoding_model_encdec_beam")
    model._default_decoder_params = models.DecoderParams(return_all_decodes=True, num_decodes=3)
    batch = {key: jnp.asarray(x) for key, x in inputs.items() if not key.startswith("score_")}
    np.testing.assert_array_equal(model.predict_batch(params, batch), outputs["predictions"])


@pytest.mark.parametrize("search", [t5x.beam_search, functools.partial(t5x.temperature_sample, topk=1)])
def test_learned_positions_go_on_behind_the_prompt_in_every_decode_of_an_item(search):
    table = embedding.PositionEmbed(8, parts.WIDTH, embedding_init=jax.nn.initializers.normal(1.0))
    module = parts.decoder_only(bias=False, layers=1, position_embedder_factory=table.clone)
    tokens = jnp.array([[0, 5, 6, 0, 0, 0], [0, 7, 0, 0, 0, 0]])
    batch = {"decoder_input_tokens": tokens, "decoder_causal_attention": jnp.int32(tokens > 0).at[:, 0].set(1)}
    params = module.init(KEY, tokens, tokens, enable_dropout=False)["params"]
    vocabulary = types.SimpleNamespace(eos_id=1)
    found = models.DecoderOnlyModel(module, vocabulary, None, decode_fn=search).predict_batch_with_aux(
        params, batch, num_decodes=2, return_all_decodes=True
    )[0]
    strategy = BeamSearch(num_beams=2, alpha=0.6) if search is t5x.beam_search else Greedy()
    expected = models.DecoderOnlyModel(module, vocabulary, None, decode_fn=strategy).predict_batch(params, batch)
    np.testing.assert_array_equal(found[:, -1, :3], expected[:, :3])


def test_models_refuse_what_they_cannot_do(encoder_decoder, decoder_only):
    model, params, batch = encoder_decoder
    with pytest.raises(ValueError, match="rng was given twice"):
        model.predict_batch_with_aux(params, batch, KEY, decoder_params={"decode_rng": KEY})
    model, params, batch = decoder_only
    tokens = {name: x for name, x in batch.items() if name != "decoder_causal_attention"}
    with pytest.raises(ValueError, match="expected 'decoder_causal_attention' too, 1 on the inputs part"):
        model.score_batch(params, tokens)
    with pytest.raises(ValueError, match="which says how far the inputs reach"):
        model.predict_batch(params, tokens)
    undecided = models.DecoderOnlyModel(model.module, model.output_vocabulary, None, decode_fn=None)
    with pytest.raises(ValueError, match="this model has no decode_fn"):
        undecided.predict_batch(params, batch)
