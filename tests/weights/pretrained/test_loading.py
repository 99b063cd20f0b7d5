"""Folders become models and models folders; what is not known is refused by name before anything is built."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.pretrained import load_pretrained, save_pretrained
from flaxformer.weights.pretrained.files import FileArray, open_weights
from flaxformer.weights.pretrained.loading import read_in_blocks
from flaxformer.weights.restoring import abstract_params
from tests.parity.recorded import FIXTURES

FAMILIES = sorted(path.name for path in FIXTURES.iterdir())
QUICK = ("t5_1_1", "bert", "gpt2", "bart", "falcon_new")


def folder(tmp_path, family="gpt2", **changes):
    """A copy of a fixture with other attributes; None takes one out."""
    place = tmp_path / family
    shutil.copytree(FIXTURES / family, place)
    config = json.loads((place / "config.json").read_text())
    config = {name: value for name, value in (config | changes).items() if changes.get(name, value) is not None}
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_saved_folders_are_what_was_loaded_bit_for_bit(tmp_path, family):
    model, variables = load_pretrained(FIXTURES / family)
    save_pretrained(model, variables, tmp_path / "saved")
    before, after = open_weights(FIXTURES / family), open_weights(tmp_path / "saved")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array.read(), after[name].read())
    configs = (json.loads((place / "config.json").read_text()) for place in (FIXTURES / family, tmp_path / "saved"))
    assert next(configs) == next(configs)


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if (FIXTURES / name / "config_v4_spelling.json").exists()]
)
def test_both_spellings_of_a_configuration_mean_the_same_model(tmp_path, family):
    from flaxformer.weights.pretrained.loading import Folder

    place = folder(tmp_path, family)
    new = Folder.open(place)
    (place / "config.json").write_text((place / "config_v4_spelling.json").read_text())
    old = Folder.open(place)
    differing = [pair for pair in zip(new.statements[:-1], old.statements[:-1], strict=True) if len(set(pair)) > 1]
    if family == "umt5":  # the flag says otherwise, see the decision in the table
        assert [line.split(" = ")[0] for line, _ in differing] == ["logits.OutputLogits.scale"]
    else:
        assert differing == []


def test_what_is_not_known_or_not_implemented_is_refused_by_name(tmp_path):
    for number, (changes, message) in enumerate(
        [
            ({"new_thing": 3, "n_layers": 2}, "not known for model_type 'gpt2': n_layers=2, new_thing=3.*'n_layer'?"),
            ({"add_cross_attention": True}, "has add_cross_attention=True, which is not implemented; expected False"),
            ({"activation_function": "mish"}, "has activation_function='mish', which is not implemented"),
            (
                {"model_type": "gpt5"},
                "has model_type='gpt5', which this library has no table for; expected one of .*t5",
            ),
            ({"model_type": None}, "does not say 'model_type'"),
            ({"architectures": ["GPT2ForTokenClassification"]}, "the architecture 'GPT2ForTokenClassification', which"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder(tmp_path / str(number), **changes))
    cases = (
        ("bert", {"architectures": ["BertForMultipleChoice"]}, "architecture 'BertForMultipleChoice', which is not"),
        ("t5", {"feed_forward_proj": "twice-relu"}, "has feed_forward_proj='twice-relu'; expected an activation"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj with the activation 'mish'"),
        ("llama3_rope", {"rope_parameters": {"rope_type": "odd", "rope_theta": 1.0}}, "scales .* by 'odd'"),
        ("llama", {"rope_parameters": {"rope_theta": 1.0, "factor": 2}}, "not known for 'default': factor"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters per kind of layer"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types=.*expected 2 of"),
        ("opt", {"layer_norm_elementwise_affine": False}, "has layer_norm_elementwise_affine=False, which is not"),
    )
    for number, (family, changes, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder(tmp_path / f"more{number}", family, **changes))


def test_two_rotations_are_scaled_each_its_own_way(tmp_path):
    from flaxformer.weights.pretrained.loading import Folder

    full = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mscale": 2.0, "mscale_all_dim": 1.0}
    sliding = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    rotations = {"full_attention": full, "sliding_attention": sliding}
    opened = Folder.open(folder(tmp_path, "gemma3_text", rope_parameters=rotations, max_position_embeddings=64))
    assert "sliding_scaled/rotary_scaling.LinearScaling.factor = 2.0" in opened.statements
    assert "scaled/rotary_scaling.YarnScaling.factor = 4.0" in opened.statements
    assert "scaled/rotary_scaling.YarnScaling.original_length = 64" in opened.statements
    (magnitude,) = [line for line in opened.statements if "attention_factor" in line]
    assert float(magnitude.split(" = ")[1]) == pytest.approx((0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1))
    positions = {layer.self_attention.positions for layer in _layers(opened.model())}
    assert {type(scheme.scaling).__name__ for scheme in positions} == {"YarnScaling", "LinearScaling"}


def _layers(model):
    factories = model.decoder_factory(shared_token_embedder=None).layer_factory
    return [factory() for factory in factories]


def test_attributes_of_parts_are_checked_as_those_of_the_whole(tmp_path):
    stacks = json.loads((FIXTURES / "t5gemma" / "config.json").read_text())
    changes = {"encoder": stacks["encoder"] | {"new_thing": 1}}
    with pytest.raises(ValueError, match=r"encoder in .*config.json has attributes that are not known .*new_thing=1"):
        load_pretrained(folder(tmp_path / "one", "t5gemma", **changes))
    changes = {"encoder": stacks["encoder"] | {"rms_norm_eps": 1e-3}}
    with pytest.raises(ValueError, match="has stacks that differ in NORM_EPSILON; expected the same in both"):
        load_pretrained(folder(tmp_path / "two", "t5gemma", **changes))


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    place = folder(tmp_path, n_layer=1, n_inner=64)
    with pytest.raises(ValueError) as raised:
        load_pretrained(place)
    message = str(raised.value)
    assert "transformer.h.0.mlp.c_fc.weight is [32, 128], expected [32, 64]" in message
    assert "unexpected transformer.h.1.ln_1.bias [32]" in message
    with pytest.raises(ValueError, match=r"missing transformer.h.2.attn.c_attn.weight \[32, 96\]"):
        load_pretrained(folder(tmp_path / "deeper", n_layer=3))


def test_old_names_and_bodies_without_prefix_are_read(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    place = folder(tmp_path)
    weights = {name.removeprefix("transformer."): array.read() for name, array in open_weights(place).items()}
    weights["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    package.save_file(weights, place / "model.safetensors")
    _, variables = load_pretrained(place)
    _, expected = load_pretrained(FIXTURES / "gpt2")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_scanned_layers_hold_the_same_numbers_and_are_saved_alike(tmp_path):
    model, variables = load_pretrained(FIXTURES / "t5_1_1", scan_layers=True)
    assert variables["params"]["encoder"]["encoder"]["mlp"]["wo"]["kernel"].shape == (48, 2, 32)
    tokens = jnp.array([[5, 6, 7]])
    listed, flat = load_pretrained(FIXTURES / "t5_1_1")
    call = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens, "decoder_valid": tokens > 0}
    logits = [
        jax.jit(lambda v, m=m: m.apply(v, **call, enable_dropout=False))(v)
        for m, v in ((model, variables), (listed, flat))
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)
    save_pretrained(model, variables, tmp_path / "saved")
    _, again = load_pretrained(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again, flat)


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart", "phi"])
def test_scanned_parameters_fit_the_scanned_model(family):
    model, variables = load_pretrained(FIXTURES / family, scan_layers=True)
    expected = abstract_params(model)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, expected)


def test_types_and_places_are_as_asked_for(tmp_path):
    model, variables = load_pretrained(FIXTURES / "gpt2", dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    logits = jax.jit(lambda v, x: model.apply(v, x, decoder_valid=x > 0, enable_dropout=False))(
        variables, jnp.ones((1, 3), int)
    )
    assert np.isfinite(logits).all()
    save_pretrained(model, variables, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
    _, kept = load_pretrained(tmp_path / "small", param_dtype=None)
    jax.tree.map(np.testing.assert_array_equal, kept, variables)
    save_pretrained(model, variables, tmp_path / "large", dtype="float32")
    assert open_weights(tmp_path / "large")["transformer.wte.weight"].dtype == np.float32
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    _, placed = load_pretrained(FIXTURES / "gpt2", sharding=sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(placed))
    with pytest.raises(ValueError, match="sharding differs from the parameters in"):
        load_pretrained(FIXTURES / "gpt2", sharding={"decoder": sharding})


def test_nothing_half_written_is_left(tmp_path):
    model, variables = load_pretrained(FIXTURES / "gpt2")
    params = variables["params"] | {"adapter": {"kernel": np.ones((2, 2))}}
    with pytest.raises(ValueError, match="the parameters adapter/kernel have no name in Hugging Face's form"):
        save_pretrained(model, {"params": params}, tmp_path / "saved")
    broken = StoredArray((96, 32), np.dtype("float32"), lambda index: 1 / 0)
    decoder = variables["params"]["decoder"] | {"token_embedder": {"embedding": broken}}
    with pytest.raises(ZeroDivisionError):
        save_pretrained(model, {"params": {"decoder": decoder}}, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "saved").mkdir()
    with pytest.raises(ValueError, match="saved exists; expected a new place"):
        save_pretrained(model, variables, tmp_path / "saved")


def test_a_model_of_other_origin_is_saved_with_its_configuration(tmp_path):
    model, variables = load_pretrained(FIXTURES / "gpt2")
    config = json.loads((FIXTURES / "gpt2" / "config.json").read_text())
    save_pretrained(model.clone(decoder_factory=lambda **_: None), variables, tmp_path / "saved", config=config)
    with pytest.raises(ValueError, match="does not know which published configuration it has"):
        save_pretrained(model.clone(decoder_factory=lambda **_: None), variables, tmp_path / "other")


def test_large_arrays_are_read_in_blocks():
    parts = []

    def source(index):
        parts.append(index[1])
        return np.ones([part.stop - part.start for part in index], np.float32)

    array = FileArray((4096, 3000), np.dtype("float32"), source, "x", 1)
    assert read_in_blocks(array).sum() == 4096 * 3000
    assert len(parts) == 3 and parts[0].stop == parts[1].start


def reheaded(tmp_path, family, architecture, arrays, dropped=()):
    """A copy of a fixture with another architecture, other heads, and without what `dropped` begins."""
    package = pytest.importorskip("safetensors.numpy")
    place = folder(tmp_path, family, architectures=[architecture], id2label={"0": "a", "1": "b", "2": "c"})
    weights = {name: array.read() for name, array in open_weights(place).items() if not name.startswith(dropped)}
    package.save_file(weights | arrays, place / "model.safetensors")
    return place


def dense(name, width, features):
    return {f"{name}.weight": np.ones((features, width), np.float32), f"{name}.bias": np.ones(features, np.float32)}


HEADS = ("cls.", "lm_head", "vocab_", "generator_", "discriminator_")


@pytest.mark.parametrize(
    ("family", "architecture", "arrays", "output"),
    [
        ("bert", "BertForSequenceClassification", dense("classifier", 32, 3), "labels"),
        ("bert", "BertForTokenClassification", dense("classifier", 32, 3), "token_labels"),
        ("bert", "BertForQuestionAnswering", dense("qa_outputs", 32, 2), "spans"),
        ("bert", "BertForNextSentencePrediction", dense("cls.seq_relationship", 32, 2), "next_sentence"),
        ("bert", "BertModel", {}, "pooled"),
        (
            "roberta",
            "RobertaForSequenceClassification",
            dense("classifier.dense", 32, 32) | dense("classifier.out_proj", 32, 3),
            "labels",
        ),
        ("roberta", "RobertaModel", {}, "hidden"),
        (
            "distilbert",
            "DistilBertForSequenceClassification",
            dense("pre_classifier", 32, 32) | dense("classifier", 32, 3),
            "labels",
        ),
        (
            "electra_generator",
            "ElectraForSequenceClassification",
            dense("classifier.dense", 32, 32) | dense("classifier.out_proj", 32, 3),
            "labels",
        ),
    ],
)
def test_the_architecture_says_which_heads_there_are(tmp_path, family, architecture, arrays, output):
    unpooled = ("bert.pooler",) if output in ("token_labels", "spans") else ()
    place = reheaded(tmp_path, family, architecture, arrays, HEADS + unpooled)
    model, variables = load_pretrained(place)
    tokens = jnp.ones((1, 3), int)
    outputs = jax.eval_shape(lambda v: model.apply(v, tokens, enable_dropout=False), variables)
    assert output in outputs and "masked_lm" not in outputs
    save_pretrained(model, variables, tmp_path / "saved")
    saved = open_weights(tmp_path / "saved")
    bare = architecture.endswith("Model")  # a body alone is written without a prefix
    assert saved.keys() == {name.partition(".")[2] if bare else name for name in open_weights(place)}


def test_bodies_of_other_models_are_read_where_a_head_follows_from_them(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    place = folder(tmp_path, "bart", architectures=["BartModel"])
    weights = {name: array.read() for name, array in open_weights(place).items() if name.startswith("model.")}
    package.save_file(
        {name.removeprefix("model."): array for name, array in weights.items()}, place / "model.safetensors"
    )
    _, variables = load_pretrained(place)
    assert not variables["params"]["decoder"]["logits_dense"]["bias"].any()
    place = folder(tmp_path, "pegasus")
    weights = {name: array.read() for name, array in open_weights(place).items()}
    tables = [weights.pop(f"model.{stack}.embed_positions.weight") for stack in ("encoder", "decoder")]
    package.save_file(weights, place / "model.safetensors")
    _, variables = load_pretrained(place)
    for stack, table in zip(("encoder", "decoder"), tables, strict=True):
        np.testing.assert_allclose(variables["params"][stack]["position_embedder"]["pos_embedding"], table, atol=1e-6)


def test_a_head_that_is_a_copy_of_the_table_is_tied(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    place = folder(tmp_path, "t5")
    weights = {name: array.read() for name, array in open_weights(place).items()}
    for head, tied in ((weights["shared.weight"], True), (weights["shared.weight"] + 1, False)):
        package.save_file(weights | {"lm_head.weight": head}, place / "model.safetensors")
        _, variables = load_pretrained(place)
        assert ("logits_dense" not in variables["params"]["decoder"]) is tied
