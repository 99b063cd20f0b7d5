"""Bodies without heads, encoders alone, one tower of two, and classifiers: parts of what was recorded as a whole."""

import json

import numpy as np
import pytest

from flaxformer.weights.pretrained import load_pretrained, save_pretrained
from flaxformer.weights.pretrained.files import open_weights
from tests.parity.recorded import FIXTURES, Recorded, applied, close


def part(tmp_path, family, config, kept=lambda name: True, more=None):
    """A folder with other attributes and some of a fixture's arrays."""
    package = pytest.importorskip("safetensors.numpy")
    whole = json.loads((FIXTURES / family / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config(whole)))
    arrays = {name: array.read() for name, array in open_weights(FIXTURES / family).items() if kept(name)}
    package.save_file(arrays | (more or {}), tmp_path / "model.safetensors")
    return tmp_path


def named(architecture, **changes):
    return lambda config: {**config, "architectures": [architecture], **changes}


def decoded(model, variables, recorded, case="main"):
    ids, mask = (recorded.given(case, name) for name in ("input_ids", "attention_mask"))
    return applied(model, variables, {"decoder_input_tokens": ids, "decoder_valid": mask > 0})[0], mask


def saved_names(model, variables, tmp_path):
    save_pretrained(model, variables, tmp_path / "saved")
    return set(open_weights(tmp_path / "saved"))


def test_a_body_ends_in_hidden_states(tmp_path):
    recorded = Recorded("llama")
    folder = part(tmp_path, "llama", named("LlamaModel"), lambda name: not name.startswith("lm_head"))
    model, variables = load_pretrained(folder)
    hidden, mask = decoded(model, variables, recorded)
    assert close(hidden, recorded.gave("main", "hidden_states")[-1], mask) <= 1e-4
    assert "layers.0.mlp.up_proj.weight" in saved_names(model, variables, tmp_path)


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification"])
def test_classifiers_score_every_token(tmp_path, kind):
    recorded = Recorded("llama")
    head = open_weights(FIXTURES / "llama")["lm_head.weight"].read()[:3]
    bias = np.arange(3, dtype=np.float32)
    more = {"score.weight": head} | ({"score.bias": bias} if kind == "ForTokenClassification" else {})
    config = named(f"Llama{kind}", id2label={"0": "a", "1": "b", "2": "c"})
    folder = part(tmp_path, "llama", config, lambda name: not name.startswith("lm_head"), more)
    model, variables = load_pretrained(folder)
    assert saved_names(model, variables, tmp_path) == set(open_weights(folder))
    if kind == "ForSequenceClassification":
        scores, mask = decoded(model, variables, recorded)
        assert close(scores, recorded.gave("main", "logits")[..., :3], mask) <= 1e-4


def test_the_encoder_of_an_encoder_decoder_stands_alone(tmp_path):
    recorded = Recorded("t5")
    folder = part(tmp_path, "t5", named("T5EncoderModel"), lambda name: not name.startswith("decoder"))
    model, variables = load_pretrained(folder)
    ids, mask = (recorded.given("main", name) for name in ("input_ids", "attention_mask"))
    hidden, _ = applied(model, variables, {"encoder_input_tokens": ids, "encoder_valid": mask > 0})
    assert close(hidden, recorded.gave("main", "encoder_last_hidden_state"), mask) <= 1e-4
    assert saved_names(model, variables, tmp_path) == set(open_weights(folder))
    with pytest.raises(ValueError, match="has the architecture 'T5ForQuestionAnswering', which is not implemented"):
        load_pretrained(part(tmp_path, "t5", named("T5ForQuestionAnswering")))


@pytest.mark.parametrize(("family", "head"), [("gpt2", "lm_head"), ("albert", "predictions")])
def test_bodies_are_saved_as_they_were(tmp_path, family, head):
    """What belongs to heads is not added, and ALBERT's pooler, a body's own, is kept."""
    architecture = {"gpt2": "GPT2Model", "albert": "AlbertModel"}[family]
    heads = (head, "sop_classifier")
    folder = part(tmp_path, family, named(architecture), lambda name: not name.startswith(heads))
    before = {name.split(".", 1)[1] for name in open_weights(folder)}
    assert saved_names(*load_pretrained(folder), tmp_path) == before


def tower(kind, architecture):
    def config(whole):
        return {**whole[f"{kind}_config"], "model_type": f"clip_{kind}_model", "architectures": [architecture]}

    return config


@pytest.mark.parametrize("projected", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_encoder_of_texts_stands_alone(tmp_path, projected):
    recorded = Recorded("clip")
    architecture = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    wanted = ("text_model", "text_projection") if projected else "text_model"
    changes = {"projection_dim": json.loads((FIXTURES / "clip" / "config.json").read_text())["projection_dim"]}
    config = lambda whole: tower("text", architecture)(whole) | changes  # noqa: E731
    model, variables = load_pretrained(part(tmp_path, "clip", config, lambda name: name.startswith(wanted)))
    ids, mask = (recorded.given("text", name) for name in ("input_ids", "attention_mask"))
    outputs, _ = applied(model, variables, {"encoder_input_tokens": ids, "encoder_valid": mask > 0})
    assert close(outputs["hidden"], recorded.gave("text", "last_hidden_state"), mask) <= 1e-4
    assert close(outputs["pooled"], recorded.gave("text", "pooler_output")) <= 1e-4
    if projected:
        found = np.asarray(outputs["projected"])
        assert (
            close(found / np.linalg.norm(found, axis=-1, keepdims=True), recorded.gave("main", "text_embeds")) <= 1e-4
        )
    prefix = "text_model." if projected else ""
    assert f"{prefix}embeddings.token_embedding.weight" in saved_names(model, variables, tmp_path)


@pytest.mark.slow
def test_the_encoder_of_images_stands_alone(tmp_path):
    recorded = Recorded("clip")
    folder = part(tmp_path, "clip", tower("vision", "CLIPVisionModel"), lambda name: name.startswith("vision_model"))
    model, variables = load_pretrained(folder)
    images = np.moveaxis(recorded.given("vision", "pixel_values"), 1, -1)
    outputs, _ = applied(model, variables, {"images": images})
    assert close(outputs["hidden"], recorded.gave("vision", "last_hidden_state")) <= 1e-4
    assert close(outputs["pooled"], recorded.gave("vision", "pooler_output")) <= 1e-4
    assert "embeddings.class_embedding" in saved_names(model, variables, tmp_path)
